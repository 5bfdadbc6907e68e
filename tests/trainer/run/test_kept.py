"""Runs whose bucket nobody may reach: they are kept on the machine that trains, and say so."""

import pytest
import torch

from bitnet_crds.protocol import SCRATCH, ExitCode
from bitnet_trainer.errors import CheckpointError
from bitnet_trainer.kept import _words
from gcs_faults import Fault
from ports import free_port

SENTENCE = "GCS disabled: training continues, checkpoints stay on "


@pytest.fixture
def in_bucket(make_run, bucket):
    """Makes a run that would like a bucket, and trains without."""

    def make(**changes):
        checkpoint = {"uri": f"gs://{bucket.bucket}/runs", "everySteps": 4, "keep": 2, "required": False}
        return make_run(checkpoint=checkpoint | changes.pop("checkpoint", {}), **changes)

    return make


@pytest.fixture
def lost(no_credentials, monkeypatch, proxy):
    """Takes the credentials away, and gives them back."""

    def take(*, away=True):
        if away:
            no_credentials()
        else:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)

    return take


def objects(bucket):
    with bucket.client() as client:
        return {blob.name.removeprefix("runs/default/tiny/") for blob in client.list_blobs(bucket.bucket)}


def test_without_credentials_it_trains_to_its_end_and_all_is_where_it_says(
    in_bucket, train_here, lost, caplog
):
    lost()
    run = in_bucket(steps=12)
    result, reporter = train_here(run)
    (warning,) = reporter.progress.warnings
    assert warning in caplog.text
    assert warning.startswith(f"{SENTENCE}{run.folder}/checkpoints. ")
    assert "roles/storage.objectUser" in warning
    assert "GOOGLE_APPLICATION_CREDENTIALS" in warning
    assert "emptyDir" not in warning
    assert run.checkpoints() == ["step-00000008", "step-00000012"]
    assert reporter.progress.checkpoint.uri == f"file://{run.folder}/checkpoints/step-00000012"
    assert reporter.progress.checkpoint_error is None
    assert result.artifacts["HuggingFace"] == str(run.folder / "export/huggingface")
    assert (run.folder / "export/huggingface/config.json").is_file()


def test_a_pod_says_what_becomes_of_its_volume(in_bucket):
    order = in_bucket().order.model_copy(update={"scratch": SCRATCH})
    words = _words(order, "checkpoint.uri: no credentials.")
    assert words.startswith(f"{SENTENCE}{SCRATCH}/")
    assert "emptyDir, which goes with its pod" in words


def test_it_goes_on_from_there_bit_for_bit_and_also_into_the_bucket(
    make_run, in_bucket, bucket, train_here, lost, weights_of
):
    """Stopped twice: no credentials still, and then credentials."""
    whole = make_run(steps=12, name="whole", every_steps=4)
    train_here(whole)

    lost()
    run = in_bucket(steps=12)
    train_here(run, stop_at=3)
    run.order = run.order.model_copy(update={"first_step": 3})
    _, reporter = train_here(run, stop_at=6)
    assert run.checkpoints() == ["step-00000004", "step-00000006"]
    assert reporter.seen[0].checkpoint is None
    assert [record.step for record in run.metrics()] == list(range(1, 7))

    lost(away=False)
    run.order = run.order.model_copy(update={"first_step": 6})
    _, reporter = train_here(run, stop_at=7)
    assert reporter.progress.warnings == ()
    begun = next(seen.checkpoint for seen in reporter.seen if seen.checkpoint)
    assert begun.uri == f"file://{run.folder}/checkpoints/step-00000006"
    address = f"gs://{bucket.bucket}/runs/default/tiny"
    assert reporter.progress.checkpoint.uri == f"{address}/checkpoints/step-00000007"
    assert run.checkpoints() == ["step-00000006"], "no more than are kept, over both"

    result, _ = train_here(run)
    assert result.artifacts["HuggingFace"] == f"{address}/export/huggingface"
    assert run.checkpoints() == []
    there = objects(bucket)
    assert {"metrics.jsonl", "checkpoints/step-00000012/COMMITTED"} <= there
    assert run.figures() == whole.figures()
    expected, found = weights_of(whole), weights_of(run)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_a_run_that_the_bucket_may_have_a_checkpoint_of_does_not_begin_anew(
    in_bucket, bucket, train_here, lost
):
    """Neither where this machine has nothing of it, nor where it has an older one."""
    run = in_bucket(steps=12)
    train_here(run, stop_at=7)
    before = objects(bucket)
    run.order = run.order.model_copy(update={"first_step": 7})
    lost()
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"no credentials.*The run is at step 7, and .* no checkpoint"
        ):
            train_here(run)
        older = in_bucket(steps=12)
        train_here(older, stop_at=3)
    lost(away=False)
    assert objects(bucket) == before
    _, reporter = train_here(run)
    assert next(seen.step for seen in reporter.seen if seen.step) == 7


def test_where_checkpoints_are_required_nothing_is_trained(in_bucket, train_here, lost):
    lost()
    run = in_bucket(steps=4, checkpoint={"required": True})
    with pytest.raises(CheckpointError, match="no credentials for it"):
        train_here(run)
    assert not (run.folder / "checkpoints").exists()


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_are_refused_end_the_run(in_bucket, train_here, proxy, status):
    proxy.faults = [Fault(method, "", status) for method in ("GET", "POST")]
    run = in_bucket(steps=4)
    with pytest.raises(CheckpointError, match=r"credentials for it that hold|may not be"):
        train_here(run)


def test_a_folder_that_cannot_be_written_ends_it(in_bucket, train_here, lost):
    lost()
    run = in_bucket(steps=4)
    run.folder.parent.mkdir(parents=True)
    run.folder.touch()
    with pytest.raises((CheckpointError, OSError)):
        train_here(run)


def test_machines_that_share_the_folder_write_one_checkpoint_and_others_say_what_is_missing(
    in_bucket, lost, ended
):
    """Two pods, each with a disk of its own, then with one for both."""
    lost()
    run = in_bucket(steps=2000, workers=2)
    for shared in (False, True):
        port = free_port()
        nodes = []
        for rank in (0, 1):
            folder = "pods" if shared else f"pod-{rank}"
            run.order = run.order.model_copy(update={"scratch": f"{run.root}/{folder}"})
            file = run.order_file.rename(run.root / f"order-{rank}.json")
            nodes.append(run.launch_node(rank, port, order=file))
        if not shared:
            assert [ended(node) for node in nodes] == [ExitCode.CHECKPOINT_UNAVAILABLE] * 2
            assert "share no disk" in run.last_word("node-0").message
            continue
        run.wait_for_step(6, nodes[0])
        for node in nodes:
            node.terminate()
        assert [ended(node) for node in nodes] == [ExitCode.PREEMPTED] * 2
        stopped = run.last_word("node-0").checkpoint
        assert stopped.uri.startswith(f"file://{run.folder}/checkpoints/step-")
        assert run.last_word("node-1").checkpoint == stopped
