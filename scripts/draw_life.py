"""Draws the life of a run into docs/runs.md from the operator's own table: `python scripts/draw_life.py`."""

import argparse
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path

from bitnet_crds import SegmentReason
from bitnet_crds.status import RunPhase
from bitnet_operator.life import LIFE, Course

PAGE = Path(__file__).resolve().parents[1] / "docs" / "runs.md"
BEGIN = "<!-- Generated from operator/bitnet_operator/life.py by `make docs`. Do not edit. -->"
END = "<!-- What was generated ends here. -->"


class DrawingError(Exception):
    """The page has no place for what is generated."""


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
    """The page with the diagram and the table of now. Raises DrawingError where it has no place for them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise DrawingError(f"no place for the life of a run: write a line `{BEGIN}` and, below, `{END}`")
    generated = ["", "", "```mermaid", *diagram(), "```", "", *table(), "", ""]
    return before + begin + "\n".join(generated) + end + after


def main(arguments: list[str] | None = None, page: Path = PAGE) -> int:
    """Writes diagram and table into the page, or checks that they are there."""
    parser = argparse.ArgumentParser(prog="python scripts/draw_life.py", description=main.__doc__)
    parser.add_argument(
        "--check", action="store_true", help="fail, and show how, where the page is not up to date"
    )
    check = parser.parse_args(arguments).check
    found = page.read_text()
    wanted = drawn(found)
    if not check:
        page.write_text(wanted)
        return 0
    lines = difflib.unified_diff(
        found.splitlines(), wanted.splitlines(), page.name, f"{page.name} (generated)", lineterm=""
    )
    if differences := "\n".join(lines):
        print(differences)
        print(f"{page.name} is not up to date. Run `make docs` and commit it.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
