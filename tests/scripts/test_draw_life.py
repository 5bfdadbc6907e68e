"""The life of a run as docs/runs.md draws it: the operator's own table, in words that Mermaid takes."""

import re
from pathlib import Path

import pytest

import draw_life
from bitnet_crds.status import RunPhase
from bitnet_operator.life import LIFE, End
from generated import PlaceError


def test_the_page_shows_the_table_of_the_code() -> None:
    assert draw_life.main(["--check"]) == 0


def test_every_end_is_drawn_and_leads_somewhere() -> None:
    lines = [line.strip() for line in draw_life.diagram()]
    for end in End:
        assert f"Segment --> {end}" in lines
        assert any(line.startswith(f"{end} --> ") for line in lines)
    rows = list(draw_life.table())[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [str(end) for end in LIFE]


def test_the_diagram_says_what_the_table_of_the_code_says() -> None:
    lines = [line.strip() for line in draw_life.diagram()]
    assert "Boundary --> Next: Phase" in lines
    assert "Suspended --> RunSuspended" in lines
    assert "RunSuspended --> Next: Resumed" in lines
    assert "NonFinite --> Next: Rollback" in lines
    assert "NonFinite --> RunFailed: limit reached" in lines
    assert "Hopeless --> RunFailed" in lines
    assert "Done --> RunSucceeded" in lines


def test_the_diagram_is_of_lines_that_mermaid_knows_and_no_two_states_share_an_id() -> None:
    head, direction, *lines = [line.strip() for line in draw_life.diagram()]
    assert (head, direction) == ("stateDiagram-v2", "direction LR")
    state = re.compile(r'state "[\w ]+" as (\w+)')
    edge = re.compile(r"(\w+|\[\*\]) --> (\w+|\[\*\])(: [\w ]+)?")
    names = [match[1] for line in lines if (match := state.fullmatch(line))]
    ids = {*names, *(str(end) for end in End), "[*]"}
    assert len(ids) == len(names) + len(End) + 1
    for line in lines:
        if not state.fullmatch(line):
            match = edge.fullmatch(line)
            assert match is not None, line
            assert {match[1], match[2]} <= ids
    assert set(names) >= {f"Run{phase}" for phase in RunPhase if phase.ended}


def test_a_row_says_whether_it_is_an_attempt_and_what_follows() -> None:
    rows = {row.split(" | ")[0]: row.split(" | ") for row in draw_life.table()}
    assert rows["| Failed"][2:5] == ["`Failed`", "a segment `Retry`; at its limit the run is `Failed`", "yes"]
    assert rows["| Done"][2:5] == ["`Completed`", "the run is `Succeeded`", "no"]
    assert rows["| Suspended"][3] == "the run is `Suspended`, then a segment `Resumed`"


def test_a_page_that_says_something_else_is_found_and_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "runs.md"
    page.write_text(f"# Runs\n{draw_life.BEGIN}\nold\n{draw_life.END}\nby hand\n")
    assert draw_life.main(["--check"], page) == 1
    said = capsys.readouterr()
    assert "-old" in said.out
    assert "make docs" in said.err
    assert draw_life.main([], page) == 0
    assert draw_life.main(["--check"], page) == 0
    assert page.read_text().startswith("# Runs\n")
    assert page.read_text().endswith(f"{draw_life.END}\nby hand\n")


def test_a_page_without_a_place_for_it_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "runs.md"
    page.write_text("# Runs\n")
    with pytest.raises(PlaceError, match="no place"):
        draw_life.main([], page)
    assert page.read_text() == "# Runs\n"
