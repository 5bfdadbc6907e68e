"""Where the shape changes: the ends of stretches, why the next begins, and what is written down of it."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds import Plan, Segment, SegmentReason, parse_run, plan
from bitnet_crds.adjustments import Adjustments
from bitnet_crds.status import SegmentOutcome
from bitnet_operator.policies.resize import advance, reason_at, stretch_end
from small_run import DOCUMENT, small_document

RESCALE = {"teacher": {"from": "file:///models/teacher", "resize": "Rescale"}}
NO_RESIZE = {"teacher": {"from": "file:///models/teacher", "batchSizeFactor": 1}}
_PHASES = DOCUMENT["spec"]["phases"]
ONE_POD_IN_MAIN = RESCALE | {"phases": [_PHASES[0], _PHASES[1] | {"workers": {"count": 1}}, _PHASES[2]]}


@pytest.mark.parametrize(
    ("spec", "adjustments", "step", "end"),
    [
        pytest.param({}, {}, 0, 6, id="over a phase of the same shape"),
        pytest.param({}, {}, 5, 6, id="the teacher's phase has another"),
        pytest.param({}, {}, 6, 10, id="to the end"),
        pytest.param({}, {}, 10, 10, id="nothing is left but to evaluate"),
        pytest.param(NO_RESIZE, {}, 0, 10, id="a teacher that changes no shape"),
        pytest.param(RESCALE, {}, 0, 6, id="other pods"),
        pytest.param(ONE_POD_IN_MAIN, {}, 0, 2, id="a phase's own pods"),
        pytest.param(ONE_POD_IN_MAIN, {}, 2, 6, id="and back"),
        pytest.param({}, {"end_step": 4}, 0, 4, id="training was cut short"),
        pytest.param({}, {"end_step": 4}, 4, 4, id="and is over"),
        pytest.param({}, {"phase_ends": {"main": 3}}, 0, 3, id="a phase was cut short"),
        pytest.param({}, {"halvings": {"main": 1}}, 0, 2, id="a phase of another shape since memory ran out"),
    ],
)
def test_a_stretch_ends_where_the_next_shape_or_other_pods_begin(
    ledger: Callable[..., Plan], spec: dict[str, Any], adjustments: dict[str, Any], step: int, end: int
) -> None:
    assert stretch_end(ledger(Adjustments.model_validate(adjustments), **spec), step) == end


@pytest.mark.parametrize(
    ("spec", "step", "reason"),
    [
        ({}, 0, SegmentReason.RETRY),
        ({}, 2, SegmentReason.PHASE),
        ({}, 3, SegmentReason.RETRY),
        ({}, 6, SegmentReason.TEACHER_PHASE),
        (RESCALE, 6, SegmentReason.TEACHER_PHASE),
        (ONE_POD_IN_MAIN, 2, SegmentReason.PHASE),
        ({}, 10, SegmentReason.RETRY),
    ],
)
def test_a_segment_at_a_boundary_begins_for_what_begins_there(
    ledger: Callable[..., Plan], spec: dict[str, Any], step: int, reason: SegmentReason
) -> None:
    assert reason_at(ledger(**spec), step) is reason


def opened(planned: Plan, first_step: int) -> Segment:
    return Segment(
        index=3,
        reason=SegmentReason.RETRY,
        job="small-1",
        first_step=first_step,
        end_step=stretch_end(planned, first_step),
        shape=planned.phase_at(first_step).shape,
        pods="pods",
        started_at="2026-01-01T00:00:00Z",
    )


@given(
    spec=st.sampled_from([{}, RESCALE, NO_RESIZE, ONE_POD_IN_MAIN]),
    halved=st.sets(st.sampled_from(["warmup", "main", "distill"])),
    first_step=st.integers(0, 9),
    steps=st.lists(st.integers(0, 12), min_size=1, max_size=6),
)
def test_what_is_written_down_is_the_ledgers_own_however_often_one_looks(
    spec: dict[str, Any], halved: set[str], first_step: int, steps: list[int]
) -> None:
    halvings = Adjustments(halvings=dict.fromkeys(halved, 1))
    planned = plan(parse_run(small_document(**spec)).spec, halvings)
    segments: tuple[Segment, ...] = (opened(planned, first_step),)
    for step in steps:
        segments = (*segments[:-1], *advance(planned, segments[-1], step, "2026-01-01T00:01:00Z"))
    at_once = advance(planned, opened(planned, first_step), max(steps), "2026-01-01T00:01:00Z")
    assert [(each.first_step, each.end_step) for each in segments] == [
        (each.first_step, each.end_step) for each in at_once
    ]
    assert [each.index for each in segments] == list(range(3, 3 + len(segments)))
    assert {(each.job, each.pods) for each in segments} == {("small-1", "pods")}
    for before, after in pairwise(segments):
        assert (before.outcome, before.last_step) == (SegmentOutcome.COMPLETED, before.end_step)
        assert after.first_step == before.end_step
        assert after.first_step < planned.pods_end(first_step), "no segment in pods that are not its own"
        assert after.shape == planned.phase_at(after.first_step).shape
    assert segments[-1].outcome is SegmentOutcome.RUNNING
    assert segments[-1].last_step == min(max(steps), segments[-1].end_step)
