"""The loss in few points: against the same made of all losses at once."""

import math
from statistics import median
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds.health import STRETCHES
from bitnet_crds.protocol import LossPoint
from bitnet_trainer.loss_curve import LossCurve, window_of

LOSS = st.one_of(st.floats(0.1, 20), st.sampled_from([None, math.nan, math.inf]))
PHASES = st.lists(st.lists(LOSS, min_size=1, max_size=80), min_size=1, max_size=3)


def numbered(phases):
    """Step, phase and loss of each step, and the steps before each phase."""
    steps, first_steps = [], {}
    for number, losses in enumerate(phases):
        first_steps[f"phase-{number}"] = len(steps)
        steps += [(len(steps) + place, f"phase-{number}", loss) for place, loss in enumerate(losses, 1)]
    return steps, first_steps


def at_once(phase, first_step, window):
    """The curve of the losses of one phase so far."""
    length = math.ceil(window / STRETCHES)
    stretches = [phase[begin : begin + length] for begin in range(0, len(phase) - length + 1, length)]
    found = []
    for number, stretch in list(enumerate(stretches, 1))[-STRETCHES:]:
        finite = [loss for loss in stretch if loss is not None and math.isfinite(loss)]
        if finite:
            found.append(LossPoint(step=first_step + number * length, loss=median(finite)))
    return tuple(found)


@given(PHASES, st.integers(1, 100))
def test_it_is_the_curve_of_all_losses_of_the_phase(phases, window):
    steps, first_steps = numbered(phases)
    curve = LossCurve(window, first_steps)
    for step, phase, loss in steps:
        curve.add(step, phase, loss)
        began = first_steps[phase]
        so_far = [loss for _, _, loss in steps[began:step]]
        assert curve.points == at_once(so_far, began, window)


@given(PHASES, st.integers(1, 100), st.data())
def test_one_that_is_shown_the_losses_again_goes_on_as_the_one_before(phases, window, data):
    steps, first_steps = numbered(phases)
    stopped = data.draw(st.integers(0, len(steps)))
    whole = LossCurve(window, first_steps).show(steps)
    resumed = LossCurve(window, first_steps).show(steps[:stopped]).show(steps[stopped:])
    assert resumed.points == whole.points


@given(st.lists(LOSS, min_size=1, max_size=80), st.integers(1, 100), st.data())
def test_steps_that_are_missing_are_in_no_stretch(losses, window, data):
    """As where what a machine recorded went with it: a part of a stretch is no stretch."""
    steps, first_steps = numbered([losses])
    missing = data.draw(st.integers(0, len(steps)))
    found = LossCurve(window, first_steps).show(steps[missing:]).points
    length = math.ceil(window / STRETCHES)
    whole = LossCurve(window, first_steps).show(steps).points
    assert found == tuple(point for point in whole if point.step - length >= missing)


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (128, 1), (129, 2), (1280, 10)])
def test_a_window_has_at_least_the_tokens_asked_for(tokens, steps):
    assert window_of(SimpleNamespace(tokens_per_step=128), tokens) == steps
