"""A run's checkpoints: written while it trains, reported when they are committed, and never its undoing."""

import queue
import threading

import pytest
import torch

from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.checkpoint.saver import Saver
from bitnet_trainer.recorder import Recorder


@pytest.fixture
def slow_commits(monkeypatch):
    """Makes each commit wait until `wait(step)` returns."""

    def slow(wait):
        real = LocalStore.commit

        def commit(self, step, files):
            wait(step)
            return real(self, step, files)

        monkeypatch.setattr(LocalStore, "commit", commit)

    return slow


def test_training_goes_on_while_checkpoints_are_written_and_computes_the_same(
    make_run, train_here, weights_of, slow_commits, monkeypatch
):
    """`Progress.checkpoint` moves when a checkpoint is committed, which here takes until two steps later."""
    whole = make_run(steps=12, name="whole", every_steps=4)
    train_here(whole)

    slow = make_run(steps=12, name="slow", every_steps=4)
    taken = {step: threading.Event() for step in range(1, 13)}
    slow_commits(lambda step: step == 12 or taken[step + 2].wait(20))
    written, begin, push = queue.SimpleQueue(), Saver.begin, Recorder.push

    def begin_seen(self, position):
        begin(self, position)
        written.put(self._coming)

    def push_seen(self, step, values):
        taken[step.step].set()
        if step.step in (6, 10):
            written.get(timeout=20).result(20)
        push(self, step, values)

    monkeypatch.setattr(Saver, "begin", begin_seen)
    monkeypatch.setattr(Recorder, "push", push_seen)
    _, reporter = train_here(slow)
    assert slow.checkpoints() == ["step-00000008", "step-00000012"]
    reported = {seen.step: seen.checkpoint and seen.checkpoint.step for seen in reporter.seen if seen.loss}
    assert (reported[5], reported[9], reported[11], reported[12]) == (None, 4, 8, 12)
    assert reporter.progress.checkpoint.step == 12
    assert slow.figures() == whole.figures()
    expected, found = weights_of(whole), weights_of(slow)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_a_request_to_stop_waits_for_the_one_in_flight_and_for_its_own(make_run, train_here, slow_commits):
    order = []
    slow_commits(order.append)
    run = make_run(steps=12)
    result, reporter = train_here(run, stop_at=6)
    assert result.stopped
    assert order == [5, 6]
    assert reporter.progress.checkpoint.step == 6


def test_what_is_in_flight_when_an_error_ends_the_run_is_committed(make_run, train_here, monkeypatch):
    run = make_run(steps=12)

    def broken(self, *_):
        if self.step == 5:
            raise ZeroDivisionError
        return {}

    monkeypatch.setattr("bitnet_trainer.loop.TrainingLoop._teacher_as_planned", broken)
    with pytest.raises(ZeroDivisionError):
        train_here(run)
    assert run.checkpoints() == ["step-00000005"]
