"""How weights come over from one phase to the next, by property and to the bit."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds import BitNetRunSpec, InvalidRun, plan
from bitnet_crds.objectives import TEACHER_OBJECTIVES
from small_specs import phases_of, spec_of

NAMES = ["crossEntropy", "maskedDiffusion", "teacherLogits", "hiddenStates"]


@st.composite
def curricula(draw: st.DrawFn) -> BitNetRunSpec:
    """Specs of 200 steps whose phases give some objectives some weight, most of them blended over."""
    shares = [*sorted(draw(st.sets(st.integers(10, 90), max_size=4))), 100]
    weights = st.sampled_from([0.0, 0.1, 0.3, 1.0, 7.7])
    phases: list[dict[str, Any]] = []
    for begin, share in zip([0, *shares], shares, strict=False):
        objectives = draw(
            st.dictionaries(st.sampled_from(NAMES), weights, min_size=1).filter(
                lambda given: any(given.values())
            )
        )
        phase: dict[str, Any] = {"name": f"phase-{begin}", "until": f"{share}%"}
        phase["objectives"] = {name: {"weight": weight} for name, weight in objectives.items()}
        if begin and draw(st.booleans()):
            steps = draw(st.integers(1, 2 * (share - begin)))
            phase["transition"] = {"steps": steps, "curve": draw(st.sampled_from(["Linear", "Cosine"]))}
        phases.append(phase)
    asked = any(
        phase["objectives"].get(name, {}).get("weight")
        for phase in phases
        for name in ("teacherLogits", "hiddenStates")
    )
    return spec_of(
        budget={"tokens": 200 * 64, "globalBatchSize": 8},
        phases=phases,
        workers={"count": 1, "gpusPerWorker": 1, "microBatchSize": 2},
        **({"teacher": {"from": "hf://a/b"}} if asked else {}),
    )


@given(curricula())
def test_weights_at_a_step_are_those_of_the_formula(spec: BitNetRunSpec) -> None:
    ledger = plan(spec)
    for index, phase in enumerate(spec.phases):
        own = phase.objectives.weights()
        before = spec.phases[index - 1].objectives.weights() if index else {}
        steps = phase.transition.steps if phase.transition else 0
        first_step, end_step = ledger.phases[index].first_step, ledger.phases[index].end_step
        for step in range(first_step, end_step):
            weights, k = ledger.weights_at(step), step - first_step
            if k >= steps:
                assert weights == own
                continue
            p = (k + 1) / steps
            if phase.transition is not None and phase.transition.curve == "Cosine":
                p = (1 - math.cos(math.pi * p)) / 2
            assert weights.keys() == own.keys() | before.keys()
            for name, weight in weights.items():
                assert weight >= 0
                old, new = before.get(name, 0), own.get(name, 0)
                assert weight == (new if k == steps - 1 else pytest.approx(old + (new - old) * p))


@given(curricula())
def test_weights_go_from_the_old_to_the_own_without_a_jump(spec: BitNetRunSpec) -> None:
    """Each one straight there: never back, never past it, and in no step more than the curve's steepest."""
    ledger = plan(spec)
    for before, phase in pairwise(ledger.phases):
        steepest = (math.pi / 2 if phase.curve == "Cosine" else 1) / max(1, phase.transition_steps)
        for name in before.weights | phase.weights:
            old, own = before.weights.get(name, 0.0), phase.weights.get(name, 0.0)
            values = [
                ledger.weights_at(step).get(name, 0.0) for step in range(phase.first_step - 1, phase.end_step)
            ]
            assert (values[0], values[-1]) == (ledger.weights_at(before.end_step - 1).get(name, 0.0), own)
            assert values[0] == old
            rounding = 1e-12 * max(old, own)
            assert all(min(old, own) - rounding <= value <= max(old, own) + rounding for value in values)
            changes = [after - value for value, after in pairwise(values)]
            assert all(change * (own - old) >= -rounding for change in changes)
            assert all(abs(change) <= steepest * abs(own - old) + rounding for change in changes)


@given(curricula())
def test_the_teacher_is_there_where_any_step_asks_it(spec: BitNetRunSpec) -> None:
    """Also while its objective fades out, and then for the whole phase, which has one shape."""
    ledger = plan(spec)
    for phase in ledger.phases:
        asked = any(
            weight > 0 and name in TEACHER_OBJECTIVES
            for step in range(phase.first_step, phase.end_step)
            for name, weight in ledger.weights_at(step).items()
        )
        assert phase.teacher == asked
        assert phase.shape.micro_batch_size == (1 if asked else 2)
    loading = [phase.first_step for phase in ledger.phases if phase.teacher][:1]
    assert ledger.teacher_loading == {(): "Never", (0,): "AtStart"}.get(tuple(loading), "Deferred")


@pytest.mark.parametrize("curve", ["Linear", "Cosine"])
@pytest.mark.parametrize(("old", "new"), [(0.7, 0.1), (7.7, 0.1), (0.1, 0.3)])
def test_a_transition_ends_in_the_very_weight_that_is_written(curve: str, old: float, new: float) -> None:
    """Rounding alone would leave it beside: 0.7 + (0.1 - 0.7) * 1 is 0.09999999999999998."""
    phases = phases_of([50, 100], None)
    phases[0]["objectives"]["crossEntropy"]["weight"] = old
    phases[1]["objectives"]["crossEntropy"]["weight"] = new
    phases[1]["transition"] = {"steps": 7, "curve": curve}
    ledger = plan(spec_of(budget={"tokens": 6400}, phases=phases))
    assert ledger.weights_at(56) == ledger.weights_at(57) == {"crossEntropy": new}
    assert ledger.weights_at(49) == {"crossEntropy": old}


def test_a_transition_longer_than_its_phase_is_an_error() -> None:
    phases = phases_of([90, 100], None)
    phases[1]["transition"] = {"steps": 11}
    with pytest.raises(
        InvalidRun, match=r"spec\.phases\[1\]\.transition\.steps: 11 steps .* the 10 of .* Write at most 10"
    ):
        plan(spec_of(budget={"tokens": 6400}, phases=phases))
