"""Whole runs on text of the hub and of a bucket: what is read of it, what is kept, and how they go on."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from bitnet_crds.adjustments import Adjustments
from bitnet_crds.plan import plan
from bitnet_trainer.errors import DataUnavailable
from gcs_server import upload


def lines(count, first=0):
    words = (" ".join(f"w{2 + (first + 3 * line + n) % 40}" for n in range(31)) for line in range(count))
    return "".join(json.dumps({"body": line}) + "\n" for line in words).encode()


@pytest.fixture
def make_far_run(make_run, hub, bucket, monkeypatch, tmp_path):
    """Makes a run on a dataset with many documents, and on a folder in a bucket."""
    hub.write("a/b", {"train.jsonl": lines(2000)})
    upload(bucket.bucket, {"text/a.txt": b" ".join(b"w%d" % (2 + n % 9) for n in range(2000))})
    monkeypatch.setenv("BITNET_TEXT_CACHE", str(tmp_path / "text"))

    def make(name, **changes):
        sources = [
            {"name": "web", "uri": "hf://a/b", "field": "body"},
            {"name": "books", "uri": f"gs://{bucket.bucket}/text"},
        ]
        return make_run(
            name=name, data={"sequenceLength": 16, "sources": sources, "heldOut": "10%"}, **changes
        )

    return make


def readings(run):
    return json.loads((run.folder / "run.json").read_text())["sources"]


def test_a_run_whose_phase_was_cut_short_goes_on_with_the_text_that_it_began_with(make_run, hub, train_here):
    """Whatever that makes of its demand: more of one source, and less of another."""
    for name in ("a/b", "a/c"):
        hub.write(name, {"train.jsonl": lines(2000)})
    sources = [
        {"name": name, "uri": f"hf://{uri}", "field": "body", "weight": weight}
        for name, uri, weight in (("web", "a/b", 0.35), ("forum", "a/c", 0.65))
    ]
    objectives = {"crossEntropy": {"weight": 1}}
    phases = [
        {"name": "one", "until": "50%", "objectives": objectives, "mixture": {"web": 1}},
        {"name": "two", "until": "100%", "objectives": objectives, "mixture": {"forum": 1}},
    ]
    data = {"sequenceLength": 16, "sources": sources, "heldOut": "10%"}
    run = make_run(steps=12, data=data, phases=phases, teacher=None)
    train_here(run, stop_at=3)
    before = readings(run)
    cut = run.order.model_copy(
        update={"plan": plan(run.order.spec, Adjustments(phase_ends={"one": 3})), "job": "tiny-1"}
    )
    train_here(replace(run, order=cut))
    assert readings(run) == before
    assert [record.mixture for record in run.metrics()] == [
        *[{"web": 1.0, "forum": 0.0}] * 3,
        *[{"web": 0.0, "forum": 1.0}] * 9,
    ]


def test_a_run_goes_on_with_the_commit_that_it_began_with(make_far_run, hub, train_here, weights_of):
    """On a machine that has none of the tokens, after the branch went on and the budget's part was read."""
    commit = (hub.root / "a/b/main").resolve().name
    whole, parts = make_far_run("whole"), make_far_run("parts")
    train_here(whole)
    # 14 + 26 + 14 sequences in the three phases and a tenth held out: 60 sequences, of half a document each.
    assert readings(whole)["web"]["records"] == 30
    assert readings(whole)["web"]["revision"] == commit
    assert readings(whole)["books"]["revision"] is None

    train_here(parts, stop_at=5)
    hub.write("a/b", {"train.jsonl": lines(2000, first=7)})
    shutil.rmtree(parts.folder / "tokens")
    train_here(parts)
    assert readings(parts) == readings(whole)
    expected, found = weights_of(whole), weights_of(parts)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert parts.figures() == whole.figures()


def test_a_run_whose_tokens_are_kept_asks_the_hub_for_nothing(make_far_run, hub, train_here):
    run = make_far_run("tiny")
    train_here(run, stop_at=5)
    asked = len(hub.requests)
    result, _ = train_here(run)
    assert not result.stopped
    assert len(hub.requests) == asked


def test_two_ranks_of_a_launcher_read_what_one_does(make_far_run, hub, train_here, ended):
    alone, pair = make_far_run("alone"), make_far_run("pair", workers=2)
    train_here(alone)
    assert ended(pair.launch(HF_ENDPOINT=hub.url, HF_HOME=str(pair.root / "hub-home"))) == 0
    assert readings(pair) == readings(alone)
    for one, two in zip(alone.metrics(), pair.metrics(), strict=True):
        assert two.loss == pytest.approx(one.loss, rel=1e-2)


def test_a_dataset_that_is_not_there_ends_the_run_before_it_begins(make_far_run, hub, train_here):
    shutil.rmtree(hub.root / "a")
    run = make_far_run("tiny")
    with pytest.raises(DataUnavailable, match=r"source 'web': .*there is no such dataset"):
        train_here(run)
    assert not (run.folder / "run.json").exists()
