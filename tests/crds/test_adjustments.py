"""The ledger after what befell a run: halved batches, roll-backs, phases that ended early; resized pods."""

import copy
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds import Adjustments, BitNetRunSpec, InvalidRun, Order, Rollback, Shape, parse_run, plan
from bitnet_crds.carried_out import carried_out
from bitnet_crds.spec import API_VERSION, KIND
from bitnet_crds.tuning import TUNING

OBJECTIVES = {"crossEntropy": {"weight": 1}}
DISTILL = {**OBJECTIVES, "teacherLogits": {"weight": 1}}


def spec_of(**changes: Any) -> BitNetRunSpec:
    """100 steps of 24 sequences: main until 60, distill until 100."""
    spec: dict[str, Any] = {
        "model": {"from": "file:///m"},
        "data": {"sequenceLength": 16, "sources": [{"name": "text", "uri": "file:///text"}]},
        "budget": {"tokens": 16 * 24 * 100, "globalBatchSize": 24},
        "phases": [
            {"name": "main", "until": "60%", "objectives": OBJECTIVES},
            {"name": "distill", "until": "100%", "objectives": DISTILL},
        ],
        "teacher": {"from": "file:///t", "resize": "Rescale"},
        "workers": {"count": 1, "gpusPerWorker": 0, "microBatchSize": 4},
        "checkpoint": {"uri": "file:///runs"},
    } | changes
    return parse_run(
        {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "a"}, "spec": copy.deepcopy(spec)}
    ).spec


def phases_of(**distill: Any) -> list[dict[str, Any]]:
    return [
        {"name": "main", "until": "60%", "objectives": OBJECTIVES},
        {"name": "distill", "until": "100%", "objectives": DISTILL, **distill},
    ]


def test_a_phase_in_other_pods_holds_the_global_batch() -> None:
    ledger = plan(spec_of(phases=phases_of(workers={"count": 3})))
    main, distill = ledger.phases
    assert (main.new_pods, distill.new_pods) == (False, True)
    assert (distill.shape.workers, distill.shape.micro_batch_size, distill.shape.accumulation) == (3, 2, 4)
    assert main.shape.global_batch_size == distill.shape.global_batch_size == 24
    assert [ledger.pods_end(step) for step in (0, 59, 60, 99)] == [60, 60, 100, 100]


def test_a_phases_own_micro_batch_is_taken_as_it_is_written() -> None:
    ledger = plan(spec_of(phases=phases_of(workers={"microBatchSize": 6})))
    assert ledger.phases[1].shape.micro_batch_size == 6
    assert ledger.phases[1].new_pods, "the teacher comes in by Rescale"
    in_place = {"from": "file:///t"}
    ledger = plan(spec_of(phases=phases_of(workers={"microBatchSize": 6}), teacher=in_place))
    assert not ledger.phases[1].new_pods


@pytest.mark.parametrize("own", [{"count": 2}, {"gpusPerWorker": 2}, {"template": {"spec": {}}}])
def test_other_pods_in_place_are_a_contradiction(own: dict[str, Any]) -> None:
    with pytest.raises(
        InvalidRun, match=r"(?s)spec.teacher.resize.*comes in in the same.*Write `resize: Rescale`"
    ):
        spec_of(phases=phases_of(workers=own), teacher={"from": "file:///t"})


def test_rescale_without_a_boundary_is_refused() -> None:
    only = [{"name": "distill", "until": "100%", "objectives": DISTILL}]
    with pytest.raises(InvalidRun, match=r"(?s)spec.teacher.resize.*in every phase"):
        spec_of(phases=only)


@given(st.integers(1, 64), st.integers(1, 64))
def test_a_halved_micro_batch_holds_the_global_batch(micro: int, accumulation: int) -> None:
    shape = Shape(workers=2, processes_per_worker=2, micro_batch_size=micro, accumulation=accumulation)
    halved = shape.halved()
    if micro == 1:
        assert halved is None
        return
    assert halved is not None
    assert halved.global_batch_size == shape.global_batch_size
    assert halved.micro_batch_size <= micro / 2
    assert halved.micro_batch_size == micro / 2 or micro % 2


def test_a_halved_phase_stands_in_the_plan_and_is_the_same_ledger() -> None:
    before = plan(spec_of())
    after = plan(spec_of(), Adjustments(halvings={"distill": 1}))
    assert (before.phases[1].shape.micro_batch_size, before.phases[1].shape.accumulation) == (2, 12)
    assert (after.phases[1].shape.micro_batch_size, after.phases[1].shape.accumulation) == (1, 24)
    assert after.phases[0] == before.phases[0]
    assert after.ledger_hash == before.ledger_hash
    at_its_end = plan(spec_of(), Adjustments(halvings={"distill": 5}))
    assert at_its_end.phases[1].shape.micro_batch_size == 1


def auto(**changes: Any) -> BitNetRunSpec:
    """2 workers with a GPU each, whose micro batch is to be found."""
    workers = {"count": 2, "gpusPerWorker": 1, "microBatchSize": "Auto"}
    return spec_of(workers=workers, teacher={"from": "file:///t"}, **changes)


def test_an_auto_phase_is_planned_with_the_largest_micro_batch_that_could_be() -> None:
    ledger = plan(auto())
    assert [(phase.auto, phase.shape.micro_batch_size) for phase in ledger.phases] == [(True, 12)] * 2
    assert {phase.shape.accumulation for phase in ledger.phases} == {1}
    fixed = plan(spec_of(workers={"count": 2, "gpusPerWorker": 1, "microBatchSize": 4}))
    assert ledger.ledger_hash == fixed.ledger_hash
    assert not any(phase.auto for phase in fixed.phases)
    own = plan(auto(phases=phases_of(workers={"microBatchSize": 3})))
    assert [(phase.auto, phase.shape.micro_batch_size) for phase in own.phases] == [(True, 12), (False, 3)]


def test_a_micro_batch_that_was_found_is_the_plans_and_halvings_come_after_it() -> None:
    found = Adjustments(micro_batches={"main": 12, "distill": 5})
    ledger = plan(auto(), found)
    shapes = [(phase.shape.micro_batch_size, phase.shape.accumulation) for phase in ledger.phases]
    assert shapes == [(12, 1), (4, 3)], "5 sequences do not divide 12"
    assert not any(phase.auto for phase in ledger.phases)
    assert ledger.ledger_hash == plan(auto()).ledger_hash
    assert plan(auto()).fitted(found.micro_batches) == ledger

    halved = plan(auto(), found.model_copy(update={"halvings": {"distill": 1}}))
    assert (halved.phases[1].shape.micro_batch_size, halved.phases[1].shape.accumulation) == (2, 6)
    partly = plan(auto(), Adjustments(micro_batches={"main": 6}))
    assert [phase.auto for phase in partly.phases] == [False, True]


def test_a_teacher_is_tuned_with_a_micro_batch_that_was_found_for_it() -> None:
    workers = {"count": 2, "gpusPerWorker": 1, "microBatchSize": "Auto"}
    spec = spec_of(workers=workers, teacher={"from": "file:///t", "tune": {"tokens": "10k"}})
    before = plan(spec)
    after = plan(spec, Adjustments(micro_batches={TUNING: 3}, halvings={TUNING: 1}))
    assert before.tuning is not None
    assert after.tuning is not None
    assert (before.tuning.auto, before.tuning.shape.micro_batch_size) == (True, 12)
    assert (after.tuning.auto, after.tuning.shape.micro_batch_size) == (False, 1)
    assert after.ledger_hash == before.ledger_hash
    tuned = Order(namespace="a", name="a", job="a-0", spec=spec, plan=before, purpose="TuneTeacher")
    assert [phase.auto for phase in carried_out(tuned).plan.phases] == [True]


def test_processes_share_a_step_evenly_whatever_fits_their_memory() -> None:
    workers = {"count": 7, "gpusPerWorker": 1, "microBatchSize": "Auto"}
    with pytest.raises(
        InvalidRun, match=r"(?s)spec.budget.globalBatchSize: 24 .* 7 workers .*Write a multiple of 7"
    ):
        plan(spec_of(workers=workers, teacher={"from": "file:///t"}))


def test_what_was_found_says_nothing_of_a_phase_with_a_written_micro_batch() -> None:
    found = Adjustments(micro_batches={"main": 1, "distill": 1})
    assert plan(spec_of(), found) == plan(spec_of())


@given(st.integers(1, 64), st.integers(1, 64), st.integers(-3, 70))
def test_a_shape_holds_the_global_batch_with_any_micro_batch_it_can_have(
    micro: int, accumulation: int, most: int
) -> None:
    shape = Shape(workers=2, processes_per_worker=2, micro_batch_size=micro, accumulation=accumulation)
    sizes = shape.micro_batch_sizes()
    assert sizes == tuple(size for size in range(1, micro + 1) if shape.share % size == 0)
    smaller = shape.at_most(most)
    assert smaller.global_batch_size == shape.global_batch_size
    assert smaller.micro_batch_size == max((size for size in sizes if size <= most), default=1)


def test_after_a_roll_back_each_rate_is_lower_from_its_checkpoint_on() -> None:
    rollbacks = (
        Rollback(checkpoint_step=20, first_batch=25, batches=4, learning_rate_factor=0.5),
        Rollback(checkpoint_step=40, first_batch=50, batches=4, learning_rate_factor=0.2),
    )
    ledger = plan(spec_of(), Adjustments(rollbacks=rollbacks))
    plain = plan(spec_of())
    for step, factor in ((0, 1), (19, 1), (20, 0.5), (39, 0.5), (40, 0.1), (99, 0.1)):
        assert math.isclose(ledger.learning_rate.at(step), factor * plain.learning_rate.at(step))
    assert ledger.ledger_hash == plain.ledger_hash
    assert ledger.total_steps == ledger.end_step == 100


windows = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=5)


@given(windows)
def test_each_step_has_the_next_batch_that_is_not_passed_over(found: list[tuple[int, int]]) -> None:
    """Each window begins at a batch that a step met under those before it, as faults do."""
    rollbacks: tuple[Rollback, ...] = ()
    gone: set[int] = set()
    for step, batches in found:
        ledger = plan(spec_of(), Adjustments(rollbacks=rollbacks))
        first, last = ledger.batch_at(step), ledger.batch_at(step + batches - 1)
        window = Rollback(
            checkpoint_step=0, first_batch=first, batches=last - first + 1, learning_rate_factor=0.5
        )
        rollbacks += (window,)
        gone |= set(range(first, last + 1))
    ledger = plan(spec_of(), Adjustments(rollbacks=rollbacks))
    left = [batch for batch in range(400) if batch not in gone]
    assert [ledger.batch_at(step) for step in range(100)] == left[:100]
    at = 0
    for step in range(100):
        at += ledger.passed_over_before(step)
        assert at == ledger.batch_at(step)
        at += 1


def test_a_phase_that_ended_early_leaves_its_steps_to_the_next() -> None:
    ledger = plan(spec_of(), Adjustments(phase_ends={"main": 31}))
    assert [(phase.first_step, phase.end_step) for phase in ledger.phases] == [(0, 31), (31, 100)]
    assert (ledger.teacher_start, ledger.total_steps, ledger.pods_end(0)) == (31, 100, 31)
    assert ledger.ledger_hash == plan(spec_of()).ledger_hash
    late = plan(spec_of(), Adjustments(phase_ends={"main": 80, "distill": 70}))
    assert [phase.end_step for phase in late.phases] == [60, 100]


def test_a_run_that_ended_early_keeps_its_horizon() -> None:
    ledger = plan(spec_of(), Adjustments(end_step=42))
    assert (ledger.end_step, ledger.total_steps, ledger.tokens) == (42, 100, 42 * 24 * 16)
    assert ledger.pods_end(0) == 42
    assert ledger.learning_rate == plan(spec_of()).learning_rate
