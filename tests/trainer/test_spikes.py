"""Loss spikes: the robust z-score, and what counts as one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_trainer.spikes import FEWEST, WINDOW, SpikeDetector, robust_z

LOSSES = st.lists(st.floats(0.1, 20), min_size=FEWEST, max_size=WINDOW)


def seen(losses, phase="main"):
    detector = SpikeDetector()
    for step, loss in enumerate(losses, 1):
        detector.judge(step, phase, loss)
    return detector


@given(LOSSES, st.floats(0.1, 100), st.integers(-6, 6))
def test_the_score_knows_no_unit(before, loss, exponent):
    """By a power of two, which rounds nothing."""
    factor = 2.0**exponent
    scaled = robust_z(loss * factor, [value * factor for value in before])
    assert scaled == pytest.approx(robust_z(loss, before))


@given(LOSSES)
def test_a_spike_is_above_what_was_seen(before):
    assert robust_z(min(before), before) <= 0
    assert seen(before).judge(1000, "main", max(before) + 1000) is not None
    assert seen(before).judge(1000, "main", min(before) / 2) is None


@given(LOSSES, st.data())
def test_a_few_spikes_before_hide_none(before, data):
    """Fewer than half of the window, however large, as a mean and a standard deviation would be hidden by."""
    wild = data.draw(st.lists(st.floats(1e3, 1e6), max_size=(len(before) - 1) // 2))
    calm = [2.0 + 0.01 * (number % 7) for number in range(len(before))]
    assert robust_z(3.0, [*wild, *calm][: len(before)]) > 6


def test_the_standard_deviation_is_the_unit_of_normal_losses():
    from statistics import NormalDist

    normal = [NormalDist(5, 0.5).inv_cdf((number + 0.5) / 100) for number in range(100)]
    assert robust_z(6.5, normal) == pytest.approx(3, rel=0.02)


def test_another_phase_and_what_is_not_finite_are_no_spikes():
    detector = seen(2.0 + 0.01 * (step % 7) for step in range(2 * FEWEST))
    assert detector.judge(1000, "main", math.nan) is None
    assert detector.judge(1000, "main", math.inf) is None
    assert detector.judge(1000, "distill", 90.0) is None
    assert detector.count == 0
    assert all(detector.judge(1000, "distill", 90.0 + number % 7) is None for number in range(FEWEST))
    assert detector.judge(2000, "distill", 200.0) > 6
    assert (detector.count, detector.last) == (1, 2000)


def test_too_few_losses_judge_none():
    assert seen([2.0] * (FEWEST - 1)).judge(1000, "main", 100.0) is None
    assert seen([2.0] * FEWEST).judge(1000, "main", 100.0) > 6


def test_falling_losses_are_none():
    assert seen(10 * math.exp(-step / 300) for step in range(1000)).count == 0


@given(
    st.lists(st.tuples(st.sampled_from(["main", "distill"]), st.floats(1, 3) | st.just(90.0)), max_size=150)
)
def test_a_detector_that_is_shown_the_losses_again_goes_on_as_the_one_before(losses):
    losses = [(step, *loss) for step, loss in enumerate(losses, 1)]
    before, after = losses[: len(losses) // 2], losses[len(losses) // 2 :]
    whole = SpikeDetector()
    scores = [whole.judge(*loss) for loss in losses]
    resumed = SpikeDetector(before)
    assert [resumed.judge(*loss) for loss in after] == scores[len(before) :]
    assert (resumed.count, resumed.last) == (whole.count, whole.last)
