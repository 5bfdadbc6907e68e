"""The learning rate's schedules: each formula, its ends, and torch's own beside it."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds.schedules import LearningRateSchedule

STEPS = 1000


def schedule(**changes: Any) -> LearningRateSchedule:
    """One of 1,000 steps that falls over the last 200."""
    fields = {"peak": 1.0, "warmup_steps": 0, "decay_start": 800, "total_steps": STEPS}
    return LearningRateSchedule(**(fields | {"curve": "Linear", "final_share": 0.0} | changes))


FORMULAS = {
    "Linear": lambda p: 1 - p,
    "Cosine": lambda p: (1 + math.cos(math.pi * p)) / 2,
    "OneMinusSqrt": lambda p: 1 - math.sqrt(p),
}


@pytest.mark.parametrize("curve", FORMULAS)
@given(step=st.integers(800, STEPS - 1), final=st.floats(0, 1))
def test_it_falls_by_its_formula(curve: str, step: int, final: float) -> None:
    expected = final + (1 - final) * FORMULAS[curve]((step - 800) / 200)
    assert schedule(curve=curve, final_share=final).share_at(step) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("curve", FORMULAS)
@given(total=st.integers(2, 10**9), final=st.floats(0, 0.9))
def test_it_begins_to_fall_at_the_peak_and_ends_above_its_final_share(
    curve: str, total: int, final: float
) -> None:
    falling = schedule(curve=curve, final_share=final, decay_start=0, total_steps=total)
    assert falling.share_at(0) == 1
    assert 0 < falling.share_at(total - 1) < 1
    assert falling.share_at(total - 1) >= final
    assert falling.share_at(total) == 0


@given(warmup=st.integers(1, STEPS), total=st.integers(1, STEPS))
def test_the_last_step_of_the_warmup_has_the_peak(warmup: int, total: int) -> None:
    rising = schedule(warmup_steps=warmup, decay_start=total, total_steps=total)
    assert rising.share_at(min(warmup, total) - 1) == min(1.0, min(warmup, total) / warmup)


@pytest.mark.parametrize(
    ("changes", "scheduler"),
    [
        (
            {"curve": "Cosine", "decay_start": 0, "final_share": 0.1},
            lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, eta_min=0.1),
        ),
        (
            {"curve": "Linear", "decay_start": 0, "final_share": 0.25},
            lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.25, STEPS),
        ),
    ],
)
def test_it_is_torchs_where_the_two_coincide(changes: dict[str, Any], scheduler: Any) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs, ours = scheduler(optimizer), schedule(**changes)
    for step in range(STEPS):
        assert ours.at(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()
