"""The text of whole runs: what is left out of it, and what is told of that."""

import json
import logging
from dataclasses import replace

import pytest

from bitnet_crds.data import Data
from bitnet_crds.plan import plan
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
    assert sources["counting"] == {"records": 1, "corrupt": 0, "first": []}
    assert sources["lines"]["corrupt"] == 1


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
