"""Runs with checkpoints in a bucket: they go on on another machine, and leave there what a person needs."""

import json
import shutil
import signal

import pytest
import torch

from bitnet_crds.protocol import ExitCode
from bitnet_trainer.errors import CheckpointError
from bitnet_trainer.finish import write_artifacts
from bitnet_trainer.outcome import exit_code_of
from gcs_faults import Fault
from ports import free_port


@pytest.fixture
def in_bucket(make_run, bucket):
    """Makes a run whose checkpoints are in a bucket."""

    def make(every_steps=5, **changes):
        checkpoint = {"uri": f"gs://{bucket.bucket}/runs", "everySteps": every_steps, "keep": 2}
        return make_run(checkpoint=checkpoint, **changes)

    return make


def objects(bucket, prefix="runs/default/tiny/"):
    with bucket.client() as client:
        blobs = client.list_blobs(bucket.bucket, prefix=prefix)
        return {blob.name.removeprefix(prefix): blob.download_as_bytes() for blob in blobs}


def test_a_run_goes_on_on_another_machine_bit_for_bit(
    make_run, in_bucket, bucket, train_here, weights_of, monkeypatch
):
    """The other one has nothing of it: checkpoint, metrics and the baseline come from the bucket."""
    whole = make_run(steps=12, name="whole", every_steps=5)
    train_here(whole)

    run = in_bucket(steps=12)
    result, reporter = train_here(run, stop_at=7)
    assert result.stopped
    address = f"gs://{bucket.bucket}/runs/default/tiny"
    assert reporter.progress.checkpoint.uri == f"{address}/checkpoints/step-00000007"
    assert not list((run.folder / "checkpoints").rglob("*.distcp"))
    shutil.rmtree(run.root / "scratch")

    def measured(*_):
        raise AssertionError("the baseline was measured anew")

    monkeypatch.setattr("bitnet_trainer.run.Baseline.of", measured)
    result, reporter = train_here(run)
    assert [record.step for record in run.metrics()] == list(range(1, 13))
    assert run.figures() == whole.figures()
    expected, found = weights_of(whole), weights_of(run)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []

    left = objects(bucket)
    assert {name.split("/")[1] for name in left if name.startswith("checkpoints/")} == {
        "step-00000010",
        "step-00000012",
    }
    assert result.artifacts == {
        "HuggingFace": f"{address}/export/huggingface",
        "LossPlot": f"{address}/loss.png",
    }
    assert left["loss.png"].startswith(b"\x89PNG")
    for file in (run.folder / "export/huggingface").iterdir():
        assert left[f"export/huggingface/{file.name}"] == file.read_bytes()
    assert left["metrics.jsonl"] == (run.folder / "metrics.jsonl").read_bytes()
    assert json.loads(left["run.json"])["ledgerHash"] == run.order.plan.ledger_hash


def test_machines_without_a_shared_disk_write_one_checkpoint_and_another_number_of_ranks_goes_on(
    in_bucket, bucket, train_here, ended
):
    """Trap 9 over a bucket: 2 pods, each with a disk of its own, then 1."""
    one = in_bucket(steps=12, every_steps=4)
    run = in_bucket(steps=12, every_steps=4, workers=2)
    port = free_port()
    nodes = []
    for rank in (0, 1):
        run.order = run.order.model_copy(update={"scratch": f"{run.root}/pod-{rank}", "name": "tiny"})
        file = run.order_file.rename(run.root / f"order-{rank}.json")
        nodes.append(run.launch_node(rank, port, order=file))
    run.order = run.order.model_copy(update={"scratch": f"{run.root}/pod-0"})
    run.wait_for_step(5, nodes[0])
    for node in nodes:
        node.send_signal(signal.SIGTERM)
    assert [ended(node) for node in nodes] == [ExitCode.PREEMPTED] * 2
    stopped = run.last_word("node-0").checkpoint
    assert stopped == run.last_word("node-1").checkpoint
    names = {name.rsplit("/", 1)[-1] for name in objects(bucket) if f"step-{stopped.step:08d}" in name}
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "COMMITTED", "position.json"} <= names

    train_here(one)
    assert [record.step for record in one.metrics()] == list(range(1, 13))
    assert {record.world_size for record in one.metrics()} == {1, 2}


def test_exports_that_cannot_be_uploaded_end_the_run_with_what_is_to_be_done(
    in_bucket, train_here, proxy, monkeypatch
):
    run = in_bucket(steps=4)

    def refused(*arguments):
        proxy.faults = [Fault("POST", "^/upload/", 403)]
        return write_artifacts(*arguments)

    monkeypatch.setattr("bitnet_trainer.run.write_artifacts", refused)
    with pytest.raises(CheckpointError, match=r"may not be written .*the exports are not there yet"):
        train_here(run)
    proxy.faults = []
    monkeypatch.setattr("bitnet_trainer.run.write_artifacts", write_artifacts)
    assert train_here(run)[0].artifacts


def test_a_bucket_that_is_not_there_is_found_before_the_model_is_loaded(make_run, train_here, proxy):
    assert proxy
    run = make_run(checkpoint={"uri": "gs://nowhere/runs"})
    (run.root / "model" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="there is no bucket nowhere") as caught:
        train_here(run)
    assert exit_code_of(caught.value) == ExitCode.CHECKPOINT_UNAVAILABLE
