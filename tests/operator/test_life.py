"""The table of a run's life: every end has a course, and the courses agree with one another."""

import inspect
import re

import pytest

from bitnet_crds.status import RunPhase, SegmentOutcome, SegmentReason
from bitnet_operator import closing
from bitnet_operator.life import LIFE, REASON_OF, End, end_asked_for


def test_every_end_has_its_course() -> None:
    assert set(LIFE) == set(End)


def test_every_end_is_one_that_a_segment_can_come_to() -> None:
    named = {End[name] for name in re.findall(r"\bEnd\.([A-Z_]+)", inspect.getsource(closing))}
    assert named | set(REASON_OF.values()) == set(End)


@pytest.mark.parametrize("end", list(End))
def test_a_course_goes_on_or_says_how_the_run_ends(end: End) -> None:
    course = LIFE[end]
    assert course.begins is not None or course.over is not None
    assert course.outcome is not SegmentOutcome.RUNNING
    assert course.when.endswith(".")
    assert course.person.endswith(".")
    assert course.waits in (None, RunPhase.SUSPENDED)
    failed = course.outcome is SegmentOutcome.FAILED
    assert (course.over is RunPhase.FAILED) is failed, "what may fail has failed where its limit is reached"
    assert not course.counts or failed, "only a failure is an attempt"


def test_every_segment_but_the_first_begins_by_the_table() -> None:
    begun = {course.begins for course in LIFE.values()}
    in_place_or_first = {SegmentReason.TEACHER_TUNING, SegmentReason.TEACHER_PHASE}
    assert begun == {None, *SegmentReason} - in_place_or_first


@pytest.mark.parametrize(
    ("reason", "end"),
    [*REASON_OF.items(), ("NoStep", End.STALLED), ("ImagePullBackOff", End.STALLED), ("Odd", End.STALLED)],
)
def test_what_the_operator_asked_for_is_told_by_its_reason(reason: str, end: End) -> None:
    assert end_asked_for(reason) is end
