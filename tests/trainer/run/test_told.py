"""Runs that are told something while they train: it holds from one step on, on every rank."""

import time

import pytest
import torch

from bitnet_crds.protocol import ExitCode, Told
from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.errors import CheckpointError, NonFinite
from bitnet_trainer.told import TOLD

ALONE = [{"name": "alone", "until": "100%", "objectives": {"crossEntropy": {"weight": 1}}}]


@pytest.fixture
def tell(tmp_path, monkeypatch):
    """Says something to every run of the test."""
    monkeypatch.setenv(TOLD, str(tmp_path / "told.json"))

    def say(**changes):
        pending = tmp_path / "told.new"
        pending.write_text(Told(**changes).model_dump_json(by_alias=True))
        pending.rename(tmp_path / "told.json")

    return say


def steps_of(run):
    return [int(name.removeprefix("step-")) for name in run.checkpoints() if not name.startswith(".")]


SLOWLY = """
import time
from bitnet_trainer import told, worker
from bitnet_trainer.step import Stepper

told.LOOKED_AT_EVERY_SECONDS = 0.05
step = Stepper.__call__

def slow_step(*arguments):
    time.sleep(0.03)
    return step(*arguments)

Stepper.__call__ = slow_step
worker.main()
"""


def test_two_ranks_write_more_checkpoints_stop_and_go_on_as_if_never_told(make_run, ended, tell, weights_of):
    """By the file alone, in mid-run; every figure and every bit is that of the run that was told nothing."""
    run = make_run(steps=80, workers=2, every_steps=1000, phases=ALONE, teacher=None)
    worker = run.root / "worker.py"
    worker.write_text(SLOWLY)
    process = run.launch(worker)
    run.wait_for_step(5, process)
    tell(every_steps=3, keep=1000)
    deadline = time.monotonic() + 40
    while not (run.folder / "checkpoints").exists() or len(steps_of(run)) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    tell(every_steps=3, keep=1000, stop=True)
    assert ended(process) == ExitCode.PREEMPTED
    word = run.last_word()
    first, *_, last = steps_of(run)
    assert word.step == word.checkpoint.step == last == run.metrics()[-1].step < 80
    # No rank wrote one at another step, which no other would have joined in.
    assert steps_of(run)[:-1] == list(range(first, last, 3))

    tell(keep=1)
    assert ended(run.launch()) == 0
    assert steps_of(run) == [80]
    twin = make_run(name="twin", steps=80, workers=2, every_steps=1000, phases=ALONE, teacher=None)
    tell()
    assert ended(twin.launch()) == 0
    assert run.figures() == twin.figures()
    ours, theirs = weights_of(run), weights_of(twin)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_a_node_that_waits_for_the_others_stops_when_it_is_told(make_run, ended, tell):
    tell(stop=True)
    run = make_run(workers=2)
    process = run.launch(PET_NNODES="2", PET_NODE_RANK="1", PET_MASTER_ADDR="127.0.0.1", PET_MASTER_PORT="9")
    assert ended(process) == ExitCode.PREEMPTED
    assert run.last_word().message == "asked to stop before training began"


def test_checkpoints_that_are_required_no_more_may_fail(make_run, train_here, tell, monkeypatch):
    def full(*_):
        raise CheckpointError("the disk is full.")

    with monkeypatch.context() as broken:
        broken.setattr(LocalStore, "deliver", full)
        with pytest.raises(CheckpointError, match="The run ends here"):
            train_here(make_run(steps=6, every_steps=2))
        tell(required=False)
        _, reporter = train_here(make_run(steps=6, every_steps=2))
    assert reporter.progress.checkpoint_failures == 3


def test_as_many_bad_steps_are_left_out_as_is_told(make_run, train_here, tell, poison):
    tell(skip_steps=1)
    poison({5, 6, 7})
    with pytest.raises(
        NonFinite, match=r"2 steps in a row, up to step 6, and health\.nonFinite\.skipSteps allows 1"
    ):
        train_here(make_run(steps=12))


def test_what_cannot_be_read_is_a_warning_and_the_run_goes_on(make_run, train_here, tell, tmp_path):
    tell()
    (tmp_path / "told.json").write_text("everySteps: 3")
    _, reporter = train_here(make_run(steps=6, every_steps=2))
    (warning,) = reporter.progress.warnings
    assert "told.json cannot be read" in warning
    assert reporter.progress.step == 6
