"""What a run tells of its loss beyond the last step's, also after it was stopped or rolled back."""

from dataclasses import replace
from statistics import median

from bitnet_crds import Adjustments, Rollback, plan
from bitnet_crds.protocol import LossPoint
from bitnet_trainer import spikes

PHASES = [
    {"name": "warmup", "until": "25%", "objectives": {"crossEntropy": {"weight": 1}}},
    {"name": "main", "until": "100%", "objectives": {"crossEntropy": {"weight": 1}}},
]
STEPS, BEGUN, STRETCH = 24, 6, 2
CHANGES = {
    "steps": STEPS,
    "every_steps": 5,
    "phases": PHASES,
    "teacher": None,
    "health": {"plateau": {"windowTokens": 40 * 8 * 16}},
}


def expected(run, step):
    """The curve of phase main after a step, from the losses that the run has recorded."""
    losses = {record.step: record.loss for record in run.metrics()}
    ends = range(BEGUN + STRETCH, step + 1, STRETCH)
    return tuple(
        LossPoint(step=end, loss=median([losses[end - back] for back in range(STRETCH)])) for end in ends
    )


def test_the_curve_is_that_of_the_phase_and_outlives_a_stop(make_run, train_here):
    run = make_run(**CHANGES)
    train_here(run, stop_at=15)
    _, reporter = train_here(run)
    resumed = next(seen for seen in reporter.seen if seen.loss_curve)
    assert (resumed.step, resumed.loss_curve) == (15, expected(run, 15))
    assert reporter.progress.loss_curve == expected(run, STEPS)
    assert len(reporter.progress.loss_curve) == (STEPS - BEGUN) / STRETCH


def test_steps_trained_once_more_after_a_roll_back_count_once(make_run, train_here):
    run = make_run(**CHANGES)
    train_here(run, stop_at=17)
    once = {record.step: record.loss for record in run.metrics()}
    back = Adjustments(
        rollbacks=(Rollback(checkpoint_step=15, first_batch=16, batches=2, learning_rate_factor=0.5),)
    )
    run = replace(run, order=run.order.model_copy(update={"plan": plan(run.order.spec, back)}))
    _, reporter = train_here(run)
    assert any(record.loss != once[record.step] for record in run.metrics()[15:17])
    assert reporter.progress.loss_curve == expected(run, STEPS)


def test_without_a_plateau_to_watch_for_there_is_none(make_run, train_here):
    _, reporter = train_here(make_run(**CHANGES | {"health": {}, "steps": 8}))
    assert not any(seen.loss_curve for seen in reporter.seen)


def test_the_last_spike_is_told_also_after_a_stop(make_run, train_here, monkeypatch):
    monkeypatch.setattr(spikes, "FEWEST", 1)
    monkeypatch.setattr(spikes, "THRESHOLD", 0.0)
    run = make_run(**CHANGES)
    train_here(run, stop_at=15)
    _, reporter = train_here(run)
    found = [record.step for record in run.metrics() if record.loss_spike is not None]
    assert reporter.progress.last_loss_spike == found[-1]
    assert reporter.progress.loss_spikes == len(found)
    before = [step for step in found if step <= 15]
    at_begin = next(seen for seen in reporter.seen if seen.loss_spikes)
    assert (at_begin.loss_spikes, at_begin.last_loss_spike) == (len(before), before[-1])
