"""Draws the life of a run into docs/runs.md from the operator's own table: `python scripts/draw_life.py`."""

from collections.abc import Iterator
from pathlib import Path

from bitnet_crds import SegmentReason
from bitnet_crds.status import RunPhase
from bitnet_operator.life import LIFE, Course
from generated import check_asked, put, write

PAGE = Path(__file__).resolve().parents[1] / "docs" / "runs.md"
BEGIN = "<!-- Generated from operator/bitnet_operator/life.py by `make docs`. Do not edit. -->"
END = "<!-- What was generated ends here. -->"


def diagram() -> Iterator[str]:
    """The lines of a Mermaid state diagram: what each end leads to. Ends have their names as ids, phases of
    the run `Run` before theirs, since some are called alike."""
    yield "stateDiagram-v2"
    yield "    direction LR"
    for phase in RunPhase:
        if phase is not RunPhase.RUNNING:
            yield f'    state "run {phase}" as Run{phase}'
    yield '    state "a segment trains" as Segment'
    yield '    state "the next segment" as Next'
    yield f"    [*] --> Run{RunPhase.PENDING}"
    yield f"    Run{RunPhase.PENDING} --> Segment: {SegmentReason.START} or {SegmentReason.TEACHER_TUNING}"
    for end, course in LIFE.items():
        yield f"    Segment --> {end}"
        if course.begins is not None and course.waits is not None:
            yield f"    {end} --> Run{course.waits}"
            yield f"    Run{course.waits} --> Next: {course.begins}"
        elif course.begins is not None:
            yield f"    {end} --> Next: {course.begins}"
        if course.over is not None:
            limit = "" if course.begins is None else ": limit reached"
            yield f"    {end} --> Run{course.over}{limit}"
    yield "    Next --> Segment"
    for phase in RunPhase:
        if phase.ended:
            yield f"    Run{phase} --> [*]"


def table() -> Iterator[str]:
    """The lines of a Markdown table of all ends."""
    yield "| End | When | Outcome | What follows | An attempt? | What a person does |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for end, course in LIFE.items():
        attempt = "yes" if course.counts else "no"
        cells = (end, course.when, f"`{course.outcome}`", _follows(course), attempt, course.person)
        yield f"| {' | '.join(cells)} |"


def _follows(course: Course) -> str:
    if course.begins is None:
        return f"the run is `{course.over}`"
    begins = f"a segment `{course.begins}`"
    if course.waits is not None:
        return f"the run is `{course.waits}`, then {begins}"
    return begins if course.over is None else f"{begins}; at its limit the run is `{course.over}`"


def drawn(page: str) -> str:
    """The page with the diagram and the table of now. Raises PlaceError where it has no place for them."""
    return put(page, BEGIN, END, ["```mermaid", *diagram(), "```", "", *table()])


def main(arguments: list[str] | None = None, page: Path = PAGE) -> int:
    """Writes diagram and table into the page, or checks that they are there."""
    check = check_asked("draw_life", main.__doc__, arguments)
    return write(page, drawn(page.read_text()), check=check)


if __name__ == "__main__":
    raise SystemExit(main())
