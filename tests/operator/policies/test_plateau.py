"""Plateau: the slope that outliers do not move, and where a loss is not judged at all."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds import Plan, parse_run, plan
from bitnet_crds.adjustments import Adjustments
from bitnet_crds.advice import advise
from bitnet_crds.health import STRETCHES, Plateau
from bitnet_crds.protocol import LossPoint
from bitnet_operator.policies.plateau import judge, theil_sen
from small_run import DOCUMENT, small_document

STEPS = 1000
SPEC: dict[str, Any] = {
    "budget": {"tokens": 16 * 8 * STEPS, "globalBatchSize": 8},
    "schedule": {"warmupSteps": 20, "decayFraction": 0.2},
}
"""Phases end at 200, 600 and 1000, and the rate falls from 800 on."""
HEALTH = Plateau(window_tokens=16 * 8 * 64, min_improvement="1%")
NONE = Adjustments()


def curve(since: int, losses: Sequence[float], stretch: int = 2) -> tuple[LossPoint, ...]:
    """A window that begins at step `since`."""
    return tuple(
        LossPoint(step=since + stretch * (index + 1), loss=loss) for index, loss in enumerate(losses)
    )


FLAT = [3.0] * STRETCHES


def falling(share: float) -> list[float]:
    """Losses that fall by `share` of their middle over a window."""
    return [3.0 * (1 + share * (0.5 - (index + 0.5) / STRETCHES)) for index in range(STRETCHES)]


@pytest.fixture(scope="module")
def planned() -> Plan:
    return plan(parse_run(small_document(**SPEC)).spec)


@pytest.mark.parametrize(
    ("losses", "flat"),
    [
        pytest.param(FLAT, True, id="flat"),
        pytest.param(falling(-0.1), True, id="rising"),
        pytest.param(falling(0.009), True, id="falling by less than asked for"),
        pytest.param(falling(0.011), False, id="falling by more"),
        pytest.param([*FLAT[:16], *[2.0] * 16], False, id="a step down in its middle"),
        pytest.param([*FLAT[:31], 300.0], True, id="one spike"),
        pytest.param([*FLAT[:31], 0.1], True, id="one dip"),
    ],
)
def test_a_loss_is_flat_where_it_fell_by_less_than_was_asked_for(
    planned: Plan, losses: list[float], flat: bool
) -> None:
    judgement = judge(planned, NONE, HEALTH, curve(300, losses))
    assert judgement is not None
    assert (judgement.flat, judgement.since_step) == (flat, 300)


def test_the_improvement_is_a_share_of_the_loss_over_the_window(planned: Plan) -> None:
    judgement = judge(planned, NONE, HEALTH, curve(300, falling(0.1)))
    assert judgement is not None
    assert judgement.improvement == pytest.approx(0.1)


TRANSITION = DOCUMENT["spec"]["phases"][1] | {"transition": {"steps": 50}}
WITH_TRANSITION = {"phases": [DOCUMENT["spec"]["phases"][0], TRANSITION, DOCUMENT["spec"]["phases"][2]]}
LAMBDA = {"quantization": {"lambdaWarmup": {"steps": 300}}}
COSINE = {"schedule": {"name": "Cosine", "warmupSteps": 20}}
ROLLED_BACK = {
    "rollbacks": [{"checkpointStep": 310, "firstBatch": 315, "batches": 1, "learningRateFactor": 0.5}]
}


@pytest.mark.parametrize(
    ("spec", "adjustments", "since", "judged"),
    [
        pytest.param({}, {}, 19, False, id="in the rate's warmup"),
        pytest.param({}, {}, 20, True, id="after it"),
        pytest.param({}, {}, 199, False, id="it begins before a phase"),
        pytest.param({}, {}, 200, True, id="it begins with the phase"),
        pytest.param(WITH_TRANSITION, {}, 249, False, id="in the phase's transition"),
        pytest.param(WITH_TRANSITION, {}, 250, True, id="after the transition"),
        pytest.param(LAMBDA, {}, 299, False, id="in lambda's warmup"),
        pytest.param(LAMBDA, {}, 300, True, id="after lambda's"),
        pytest.param({}, {}, 736, True, id="before the decay"),
        pytest.param({}, {}, 737, False, id="into the decay"),
        pytest.param({}, {}, 900, False, id="in the decay"),
        pytest.param(COSINE, {}, 300, False, id="a rate that falls throughout"),
        pytest.param({}, ROLLED_BACK, 309, False, id="over a roll-back"),
        pytest.param({}, ROLLED_BACK, 310, True, id="after a roll-back"),
        pytest.param({}, {"phaseEnds": {"warmup": 120}}, 119, False, id="a phase that began early"),
        pytest.param({}, {"phaseEnds": {"warmup": 120}}, 120, True, id="in the phase that began early"),
    ],
)
def test_a_loss_is_judged_where_training_alone_may_make_it_fall(
    spec: dict[str, Any], adjustments: dict[str, Any], since: int, judged: bool
) -> None:
    known = Adjustments.model_validate(adjustments)
    planned = plan(parse_run(small_document(**(SPEC | spec))).spec, known)
    assert (judge(planned, known, HEALTH, curve(since, FLAT)) is not None) is judged


@pytest.mark.parametrize(
    "losses", [pytest.param(FLAT[1:], id="not whole"), pytest.param([0.0] * STRETCHES, id="no share of 0")]
)
def test_what_cannot_be_told_is_not_judged(planned: Plan, losses: list[float]) -> None:
    assert judge(planned, NONE, HEALTH, curve(300, losses)) is None


LOSSES = st.lists(st.floats(0.5, 8), min_size=STRETCHES, max_size=STRETCHES)


@given(losses=LOSSES, scale=st.sampled_from([0.001, 0.25, 1024.0]), stretch=st.sampled_from([1, 2, 4]))
def test_neither_the_scale_of_the_loss_nor_of_the_steps_decides(
    losses: list[float], scale: float, stretch: int
) -> None:
    planned = plan(parse_run(small_document(**SPEC)).spec)
    alone = judge(planned, NONE, HEALTH, curve(300, losses))
    scaled = judge(planned, NONE, HEALTH, curve(300, [loss * scale for loss in losses], stretch))
    assert alone is not None
    assert scaled is not None
    assert scaled.improvement == pytest.approx(alone.improvement, rel=1e-6, abs=1e-9)


@given(
    slope=st.floats(-0.01, 0.01),
    outliers=st.dictionaries(st.integers(0, STRETCHES - 1), st.floats(0, 1e6), max_size=STRETCHES // 4),
)
def test_a_quarter_of_the_points_may_be_anywhere(slope: float, outliers: dict[int, float]) -> None:
    points = [3 + slope * index for index in range(STRETCHES)]
    disturbed = [outliers.get(index, loss) for index, loss in enumerate(points)]
    # Pairs of undisturbed points are more than half of all, so the median lies among their slopes.
    assert theil_sen(curve(0, disturbed)) == pytest.approx(slope / 2, abs=1e-9)


@given(losses=LOSSES)
def test_a_line_through_the_points_turned_round_has_the_slope_turned_round(losses: list[float]) -> None:
    there, back = theil_sen(curve(0, losses)), theil_sen(curve(0, losses[::-1]))
    assert there == pytest.approx(-back)


def ever_judged(planned: Plan, window: int) -> bool:
    """Whether some curve of the trainer's is: its stretches begin at every n-th step of a phase."""
    stretch = -(-window // STRETCHES)
    whole = stretch * STRETCHES
    return any(
        judge(planned, NONE, HEALTH, curve(since, FLAT, stretch)) is not None
        for phase in planned.phases
        for since in range(phase.first_step, phase.end_step - whole + 1, stretch)
    )


@given(
    window=st.integers(1, 500),
    ends=st.sampled_from([(20, 60), (1, 2), (33, 66), (50, 99)]),
    transition=st.integers(0, 12),
    schedule=st.sampled_from(
        [{}, {"decayFraction": 1}, {"decayFraction": 0}, {"warmupSteps": 130, "decayFraction": 0.5}]
    ),
    warmup=st.sampled_from([0, 10, 150, 399, 400]),
)
def test_a_plateau_is_advised_against_exactly_where_no_window_of_the_run_is_judged(
    window: int, ends: tuple[int, int], transition: int, schedule: dict[str, Any], warmup: int
) -> None:
    """Trap 1: no key silently does nothing."""
    phases = [
        phase | {"until": f"{end}%"}
        for phase, end in zip(DOCUMENT["spec"]["phases"], (*ends, 100), strict=True)
    ]
    if 0 < transition <= (ends[1] - ends[0]) * 4:
        phases[1]["transition"] = {"steps": transition}
    blended = {"quantization": {"lambdaWarmup": {"steps": warmup}}} if warmup else {}
    spec = {"budget": {"tokens": 16 * 8 * 400, "globalBatchSize": 8}, "phases": phases, "schedule": schedule}
    planned = plan(parse_run(small_document(**spec, **blended)).spec)
    # One token more than the steps before would be too many.
    watched = {"health": {"plateau": {"windowTokens": 16 * 8 * (window - 1) + 1}}}
    spec = parse_run(small_document(**spec, **blended, **watched)).spec
    said = [advice for advice in advise(spec, plan(spec)) if advice.field.startswith("spec.health.plateau")]
    assert bool(said) != ever_judged(planned, window)
    for advice in said:
        _, _, most = advice.fix.partition("Write at most ")
        if most:
            tokens = int(most.split(",")[0])
            assert tokens % (16 * 8) == 0
            assert ever_judged(planned, tokens // (16 * 8))
