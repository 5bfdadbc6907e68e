"""What a run does where its checkpoints cannot be written: it ends, or goes on, and says truly which."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitnet_crds.protocol import ExitCode
from bitnet_trainer.checkpoint.bucket import BucketStore
from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.errors import CheckpointError
from bitnet_trainer.outcome import exit_code_of
from bitnet_trainer.recorder import Recorder
from gcs_faults import Fault


@pytest.fixture
def failing(monkeypatch):
    """Makes the checkpoints of these steps fail as on a full disk."""

    real, failing = LocalStore.deliver, set()

    def deliver(self, step):
        if step in failing:
            raise CheckpointError("checkpoint.uri: /runs cannot be written (No space left on device).")
        return real(self, step)

    monkeypatch.setattr(LocalStore, "deliver", deliver)
    return lambda *steps: (failing.clear(), failing.update(steps))


def optional(run_root, every_steps=4):
    return {"uri": f"file://{run_root}/runs", "everySteps": every_steps, "keep": 2, "required": False}


def test_required_checkpoints_end_the_run_and_it_says_from_where_it_goes_on(make_run, train_here, failing):
    run = make_run(steps=12, every_steps=4)
    failing(8)
    with pytest.raises(
        CheckpointError, match=r"No space left.*The run ends here, and would go on from step 4"
    ):
        train_here(run)
    assert run.checkpoints() == [".step-00000008", "step-00000004"]
    failing()
    train_here(run)


def test_a_required_first_checkpoint_that_fails_says_that_nothing_is_kept(make_run, train_here, failing):
    failing(4)
    with pytest.raises(CheckpointError, match="The run ends here, and would begin again") as caught:
        train_here(make_run(steps=12, every_steps=4))
    assert exit_code_of(caught.value) == ExitCode.CHECKPOINT_UNAVAILABLE


def test_without_required_training_goes_on_and_the_next_one_tries_again(
    make_run, train_here, failing, caplog, tmp_path
):
    failing(4, 8)
    run = make_run(steps=12, checkpoint=optional(tmp_path))
    result, reporter = train_here(run)
    assert not result.stopped
    errors = [seen.checkpoint_error for seen in reporter.seen]
    said = next(error for error in errors if error)
    assert "No space left" in said
    assert (
        "Training goes on, and the next checkpoint tries again: what was trained so far is kept nowhere"
        in said
    )
    assert said in caplog.text
    assert reporter.progress.checkpoint_error is None
    assert reporter.progress.checkpoint_failures == 2
    assert reporter.progress.checkpoint.step == 12
    assert run.checkpoints() == ["step-00000012"]
    metrics = reporter.metrics().decode()
    assert "bitnet_trainer_checkpoint_failures_total 2.0" in metrics
    assert "bitnet_trainer_checkpoint_step 12.0" in metrics
    assert "bitnet_trainer_checkpoint_timestamp_seconds " in metrics


def test_a_stop_whose_checkpoint_failed_says_from_where_it_really_goes_on(
    make_run, train_here, failing, tmp_path
):
    failing(6)
    result, _ = train_here(make_run(steps=12, checkpoint=optional(tmp_path)), stop_at=6)
    assert result.stopped
    assert result.message == "asked to stop; it goes on from step 4"


@pytest.mark.parametrize("required", [True, False])
def test_an_error_of_the_program_is_never_taken_for_a_fault_of_the_disk(
    make_run, train_here, monkeypatch, tmp_path, required
):
    def broken(*_):
        raise TypeError("a bug")

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem.FileSystemWriter.write_data", broken)
    run = make_run(steps=12, checkpoint={**optional(tmp_path), "required": required})
    with pytest.raises(
        RuntimeError, match=r"rank 0 failed while it wrote a checkpoint: TypeError\('a bug'\)"
    ):
        train_here(run)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A disk of that size at `folder`, which is gone at the end."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no disk may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_its_words_and_it_goes_on_when_there_is_room(
    make_run, train_here, tmp_path
):
    """The disk holds two checkpoints of three, and what else the run writes."""
    with small_disk(tmp_path / "runs", "2m"):
        run = make_run(steps=12, every_steps=4)
        train_here(run, stop_at=4)
        filler = tmp_path / "runs" / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        os.truncate(filler, filler.stat().st_size - 100_000)
        with pytest.raises(
            CheckpointError,
            match=r"checkpoint\.uri: .*(No space left|as by a full disk).*The run ends here, and would go on",
        ):
            train_here(run)
        filler.unlink()
        train_here(run)
        assert run.checkpoints() == ["step-00000008", "step-00000012"]


def test_a_disk_that_is_full_for_a_while_costs_checkpoints_and_no_line_of_the_metrics(
    make_run, train_here, tmp_path, monkeypatch
):
    real, filler = Recorder.push, tmp_path / "runs" / "filler"

    def push(self, step, values):
        if step.step == 5:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(512))
        if step.step == 10:
            filler.unlink()
        real(self, step, values)

    monkeypatch.setattr(Recorder, "push", push)
    with small_disk(tmp_path / "runs", "2m"):
        run = make_run(steps=12, checkpoint=optional(tmp_path), export={"formats": []})
        _, reporter = train_here(run)
        assert reporter.progress.checkpoint_failures >= 1
        assert reporter.progress.checkpoint.step == 12
        assert [record.step for record in run.metrics()] == list(range(1, 13))


def test_a_disk_that_can_only_be_read_is_known_at_the_start(make_run, train_here, tmp_path):
    with small_disk(tmp_path / "runs", "2m"):
        run = make_run(steps=12)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "runs")], check=True)
        with pytest.raises(CheckpointError, match=r"Read-only file system.*Make it writable"):
            train_here(run)


def test_storage_that_is_away_for_a_while_costs_one_checkpoint_and_not_the_run(
    make_run, train_here, proxy, bucket, monkeypatch
):
    """A bucket whose credentials expire in mid-run, and hold again later."""
    checkpoint = {"uri": f"gs://{bucket.bucket}/runs", "everySteps": 4, "keep": 2, "required": False}
    run = make_run(steps=12, checkpoint=checkpoint)
    real = BucketStore.stage

    def stage(self, step):
        proxy.faults = [Fault("POST", "^/upload/", 401)] if step == 8 else []
        real(self, step)

    monkeypatch.setattr(BucketStore, "stage", stage)
    _, reporter = train_here(run)
    said = next(seen.checkpoint_error for seen in reporter.seen if seen.checkpoint_error)
    assert "there are no credentials for it that hold" in said
    assert "what was trained since step 4 is kept nowhere yet" in said
    assert reporter.progress.checkpoint_error is None
    assert reporter.progress.checkpoint.step == 12


def test_a_bucket_that_may_not_be_written_at_the_start_is_no_reason_not_to_begin(
    make_run, train_here, proxy, bucket
):
    checkpoint = {"uri": f"gs://{bucket.bucket}/runs", "everySteps": 4, "required": False}
    run = make_run(steps=4, checkpoint=checkpoint, export={"formats": []})
    proxy.faults = [Fault("POST", "^/upload/", 403, times=1)]
    _, reporter = train_here(run)
    assert "Training begins without; each checkpoint tries again" in reporter.seen[0].checkpoint_error
    assert reporter.progress.checkpoint.step == 4
    assert reporter.progress.checkpoint_error is None
