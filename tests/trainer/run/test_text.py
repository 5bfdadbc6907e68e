"""The text of whole runs: what is left out of it, and what is told of that."""

import json
import logging
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from bitnet_crds.data import Data
from bitnet_crds.plan import plan
from bitnet_trainer import setup
from bitnet_trainer.errors import DataUnavailable


def with_data(run, **changes):
    """The run with other settings of its text."""
    data = Data.model_validate(run.order.spec.data.model_dump(by_alias=True) | changes)
    spec = run.order.spec.model_copy(update={"data": data})
    return replace(run, order=run.order.model_copy(update={"spec": spec, "plan": plan(spec)}))


def test_corrupt_records_are_told_of_once_and_kept_in_run_json(make_run, train_here, tmp_path, caplog):
    run = with_data(make_run(steps=4), corruptShare="2%")
    path = tmp_path / "lines.jsonl"
    path.write_text("no json\n" + path.read_text())
    with caplog.at_level(logging.WARNING):
        train_here(run)
    (told,) = [entry.getMessage() for entry in caplog.records if "cannot be read" in entry.getMessage()]
    assert "source 'lines': 1 of 61 records cannot be read" in told
    assert "lines.jsonl, line 1 is not JSON" in told
    assert told.endswith("They are left out.")
    sources = json.loads((run.folder / "run.json").read_text())["sources"]
    assert sources["counting"] == {"records": 1, "corrupt": 0, "first": [], "revision": None}
    assert sources["lines"]["corrupt"] == 1


def test_tokens_are_counted_in_the_progress_while_text_is_prepared(make_run, train_here, monkeypatch):
    monkeypatch.setattr(setup, "_SAID_EVERY", 100)
    _, reporter = train_here(make_run(steps=4))
    counts = [seen.prepared_tokens for seen in reporter.seen if seen.state == "PreparingData"]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert min(after - before for before, after in pairwise(sorted(set(counts)))) >= 100


def test_more_corrupt_records_than_the_run_allows_end_it(make_run, train_here, tmp_path):
    run = make_run(steps=4)
    path = tmp_path / "lines.jsonl"
    path.write_text("no json\n" + path.read_text())
    with pytest.raises(DataUnavailable, match=r"'lines': 1 of 61 .* 0\.0164 .* allows 0\.001: mend them"):
        train_here(run)


def test_a_run_of_separate_documents_trains_on_them_so_and_is_measured_so(make_run, train_here):
    """Documents of 31 tokens in sequences of 16; phases with masked text and with a teacher."""
    objectives = {"crossEntropy": {"weight": 1}, "maskedDiffusion": {"weight": 1, "maskToken": "w60"}}
    run = make_run(
        steps=4,
        phases=[
            {"name": "main", "until": "50%", "objectives": objectives},
            {"name": "distill", "until": "100%", "objectives": {"teacherLogits": {"weight": 1}}},
        ],
    )
    separate = with_data(run, documents="Separate")
    result, _ = train_here(separate)
    joined, _ = train_here(replace(run, order=run.order.model_copy(update={"name": "joined"})))
    assert result.evaluation.tokens < joined.evaluation.tokens, "first tokens of documents are not predicted"
    assert result.evaluation.perplexity_original != joined.evaluation.perplexity_original


BANDIT = {"policy": "Bandit", "everySteps": 4, "smoothing": 0.5}


def test_the_bandit_moves_the_shares_and_resumes_bit_equal(make_run, train_here, weights_of):
    whole, parts = (
        with_data(make_run(steps=24, name=name), mixture=BANDIT, heldOut="2%") for name in ("whole", "parts")
    )
    train_here(whole)
    shares = [record.mixture["counting"] for record in whole.metrics()]
    assert shares[:4] == [pytest.approx(2 / 3)] * 4
    assert shares[4:8] == [pytest.approx(1 / 2)] * 4
    assert len(set(shares)) == 6
    train_here(parts, stop_at=4)
    train_here(parts, stop_at=10)
    train_here(parts)
    expected, found = weights_of(whole), weights_of(parts)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert parts.figures() == whole.figures()


def test_two_ranks_under_the_bandit_read_as_one_does(make_run, train_here, ended):
    alone, together = (
        with_data(make_run(steps=12, workers=workers, name=f"of-{workers}"), mixture=BANDIT)
        for workers in (1, 2)
    )
    train_here(alone)
    assert ended(together.launch()) == 0
    for one, two in zip(alone.metrics(), together.metrics(), strict=True):
        assert two.mixture == pytest.approx(one.mixture, rel=1e-3)
        assert two.loss == pytest.approx(one.loss, rel=1e-3)
