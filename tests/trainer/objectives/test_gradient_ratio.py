"""Weights found by measuring: the balanced gradient has the stated norm, whatever the loss's own scale."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet_trainer.objectives.gradient_ratio import EVERY_STEPS, balanced, is_due, measured_ratios

positive = st.floats(1e-3, 1e3)


@given(scale=positive, ratio=positive, base_weight=positive)
def test_the_balanced_gradient_has_the_stated_norm(scale: float, ratio: float, base_weight: float) -> None:
    """Scaling a loss by anything (papers' factors were wrong by 100x here) changes nothing."""
    base = torch.tensor([3.0, 4.0], dtype=torch.float64) * 0.7
    other = torch.tensor([-1.0, 2.0], dtype=torch.float64) * scale
    gradients = {"crossEntropy": base, "hiddenStates": other}
    names = frozenset({"hiddenStates"})
    ratios = measured_ratios(names, lambda name: gradients[name].norm().item(), {})
    factors = balanced({"crossEntropy": base_weight, "hiddenStates": ratio}, names, ratios)
    assert factors["crossEntropy"] == base_weight
    found = factors["hiddenStates"] * other.norm().item()
    assert math.isclose(found, ratio * base_weight * base.norm().item(), rel_tol=1e-9)


@pytest.mark.parametrize("norm", [0.0, math.nan, math.inf])
def test_a_norm_that_says_nothing_changes_nothing(norm: float) -> None:
    names = frozenset({"teacherLogits"})
    for silent in ("crossEntropy", "teacherLogits"):
        found = measured_ratios(
            names, lambda name, silent=silent: norm if name == silent else 2.0, {"teacherLogits": 7.0}
        )
        assert found == {"teacherLogits": 7.0}


def test_a_vanishing_gradient_is_not_blown_up() -> None:
    norms = {"crossEntropy": 1.0, "teacherLogits": 1e-30}
    (ratio,) = measured_ratios(frozenset({"teacherLogits"}), norms.__getitem__, {}).values()
    assert ratio == 1e6


def test_nothing_is_measured_where_nothing_is_balanced() -> None:
    def never(name: str) -> float:
        raise AssertionError(name)

    assert measured_ratios(frozenset(), never, {"hiddenStates": 2.0}) == {"hiddenStates": 2.0}
    assert balanced({"crossEntropy": 0.5, "hiddenStates": 3.0}, frozenset(), {}) == {
        "crossEntropy": 0.5,
        "hiddenStates": 3.0,
    }


def test_what_was_never_measured_is_left_out() -> None:
    assert balanced({"crossEntropy": 1.0, "hiddenStates": 3.0}, frozenset({"hiddenStates"}), {}) == {
        "crossEntropy": 1.0,
        "hiddenStates": 0.0,
    }


def test_often_at_first_then_regularly() -> None:
    due = [step for step in range(3 * EVERY_STEPS) if is_due(step)]
    assert due == [0, 1, 2, 4, 8, 16, 32, 50, 100]
