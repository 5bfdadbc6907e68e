"""Roll-backs: what was not finite is not met again, and what was trained after it is forgotten."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from bitnet_crds import Adjustments, Rollback, plan
from bitnet_crds.protocol import ExitCode, Fault, Progress
from bitnet_trainer.checkpoint.state import Position
from bitnet_trainer.errors import NonFinite
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.outcome import failure_report
from tiny_training import POSITION

STEPS = 12
CHANGES = {
    "steps": STEPS,
    "every_steps": 1,
    "health": {"nonFinite": {"skipSteps": 1}},
    "optimizer": {"name": "MuonClip", "muonLearningRate": 0.01, "adamLearningRate": 5e-3},
}


class Poison:
    """Sequences whose gradient is NaN, and which sequences were trained on."""

    def __init__(self, batches):
        self.batches = batches
        """By number: the sequences of the run's global batches, as it meets them where none is left out."""
        self.bad, self.met = set(), []

    def taint(self, *numbers):
        self.bad |= {id_ for number in numbers for id_ in self.batches[number]}


@pytest.fixture
def poison(make_run, train_here, monkeypatch):
    """What a longer run of the same text trains on says which its batches are."""
    seen, real = [], CrossEntropyObjective.__call__
    found = Poison([])

    def watched(self, batch):
        loss, ids = real(self, batch), batch.cpu_rows.ids
        seen.append(ids)
        found.met += ids
        if not found.bad.isdisjoint(ids):
            loss.total.register_hook(lambda gradient: gradient * math.nan)
        return loss

    monkeypatch.setattr(CrossEntropyObjective, "__call__", watched)
    longer = make_run(steps=2 * STEPS, name="longer", phases=[LONE], teacher=None)
    train_here(longer)
    found.batches = [seen[2 * step] + seen[2 * step + 1] for step in range(2 * STEPS)]
    found.met.clear()
    return found


LONE = {"name": "main", "until": "100%", "objectives": {"crossEntropy": {"weight": 1}}}


@pytest.fixture
def tainted(make_run):
    """Makes a run, after its roll-backs so far."""

    def make(*rollbacks, name="tiny", **changes):
        run = make_run(name=name, **{**CHANGES, "phases": [LONE], "teacher": None, **changes})
        ledger = plan(run.order.spec, Adjustments(rollbacks=rollbacks))
        return replace(run, order=run.order.model_copy(update={"plan": ledger}))

    return make


def fault_of(run, train_here):
    with pytest.raises(NonFinite) as caught:
        train_here(run)
    report = failure_report(caught.value, 0, Progress(total_steps=STEPS, phase="main"))
    assert report.exit_code == ExitCode.NON_FINITE
    return report.fault


def position(run, step):
    path = run.folder / "checkpoints" / f"step-{step:08d}" / "position.json"
    return json.loads(path.read_text())


FIRST = Rollback(checkpoint_step=6, first_batch=6, batches=2, learning_rate_factor=0.5)
SECOND = Rollback(checkpoint_step=7, first_batch=9, batches=2, learning_rate_factor=0.5)


def test_bad_batches_are_not_met_again_after_one_rollback_and_after_two(
    tainted, poison, train_here, weights_of
):
    """Batches 6 and 7 are bad, and then 9 and 10. Checkpoints from within a fault are left behind."""
    poison.taint(6, 7, 9, 10)
    for name in ("whole", "parts"):
        assert fault_of(tainted(name=name), train_here) == Fault(first_step=6, steps=2)
        assert tainted(name=name).checkpoints() == ["step-00000006", "step-00000007"]
        assert fault_of(tainted(FIRST, name=name), train_here) == Fault(first_step=7, steps=2)
        stale = [position(tainted(name=name), step)["rollbacks"] for step in (7, 8)]
        assert stale == [1, 1]

    poison.met.clear()
    whole = tainted(FIRST, SECOND, name="whole")
    _, reporter = train_here(whole)
    assert reporter.progress.begun_step == 7
    assert poison.bad.isdisjoint(poison.met)
    assert set(poison.met) == {id_ for number in range(11, 16) for id_ in poison.batches[number]}
    records = whole.metrics()
    assert [record.step for record in records] == list(range(1, STEPS + 1))
    assert all(record.loss is not None for record in records)
    assert records[-1].skipped_steps == 0
    assert sum(position(whole, STEPS)["consumed"]) == 16 * 8
    assert position(whole, STEPS)["rollbacks"] == 2

    planned = plan(whole.order.spec).learning_rate
    for rate, peak in (("learning_rate", 5e-3), ("muon_learning_rate", 0.01)):
        shares = [getattr(record, rate) / peak for record in records]
        reduced = [1] * 6 + [0.5] + [0.25] * 5
        expected = [planned.share_at(step) * factor for step, factor in enumerate(reduced)]
        assert shares == pytest.approx(expected)

    # Stopped before the step that passes over, and after it.
    parts = tainted(FIRST, SECOND, name="parts")
    for stop in (8, 10):
        assert train_here(parts, stop_at=stop)[0].stopped
    train_here(parts)
    expected, found = weights_of(whole), weights_of(parts)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert parts.figures() == whole.figures()


def test_a_checkpoint_before_what_is_passed_over_holds_the_cursor_before_it(tainted, poison, train_here):
    """It is passed over when the step is taken, however often the run is stopped just before."""
    back = Rollback(checkpoint_step=2, first_batch=5, batches=3, learning_rate_factor=0.5)
    train_here(tainted(), stop_at=2)
    run = tainted(back)
    for _ in range(2):
        train_here(run, stop_at=5)
        assert sum(position(run, 5)["consumed"]) == 5 * 8
    poison.met.clear()
    train_here(run, stop_at=6)
    assert sum(position(run, 6)["consumed"]) == 9 * 8
    assert set(poison.met) == set(poison.batches[8])


def test_a_run_without_an_older_checkpoint_begins_again(tainted, poison, train_here):
    poison.taint(0, 1)
    run = tainted(every_steps=5)
    assert fault_of(run, train_here) == Fault(first_step=0, steps=2)
    run = tainted(
        Rollback(checkpoint_step=0, first_batch=0, batches=2, learning_rate_factor=0.5), every_steps=5
    )
    _, reporter = train_here(run)
    assert reporter.progress.begun_step == 0
    assert [record.step for record in run.metrics()] == list(range(1, STEPS + 1))
    assert all(record.loss is not None for record in run.metrics())
    assert sum(position(run, STEPS)["consumed"]) == 14 * 8


def test_a_fault_that_began_before_a_stop_is_told_whole(tainted, poison, train_here):
    poison.taint(6, 7, 8)
    changes = {"health": {"nonFinite": {"skipSteps": 2}}}
    assert train_here(tainted(**changes), stop_at=7)[0].stopped
    assert fault_of(tainted(**changes), train_here) == Fault(first_step=6, steps=3)


def test_checkpoints_from_before_there_were_rollbacks_know_none():
    content = asdict(POSITION)
    assert content.pop("rollbacks") == 0
    assert Position.parse(json.dumps(content).encode(), "there") == POSITION
