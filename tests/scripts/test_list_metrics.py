"""The series of /metrics as docs/metrics.md lists them."""

from pathlib import Path

import pytest

import list_metrics
from bitnet_crds.series import ALL
from generated import PlaceError


def test_the_page_lists_the_table_of_the_code() -> None:
    assert list_metrics.main(["--check"]) == 0
    page = list_metrics.PAGE.read_text()
    for each in ALL:
        assert page.count(f"| `{each.name}` | {each.type} |") == 1


def test_a_page_that_says_something_else_is_found_and_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "metrics.md"
    places = [f"{list_metrics.begin(name)}\nold\n{list_metrics.END}\nby hand" for name in list_metrics.TABLES]
    page.write_text("\n".join(places))
    assert list_metrics.main(["--check"], page) == 1
    said = capsys.readouterr()
    assert "-old" in said.out
    assert "make docs" in said.err
    assert list_metrics.main([], page) == 0
    assert list_metrics.main(["--check"], page) == 0
    assert page.read_text().count("by hand") == 3


def test_a_page_without_a_place_for_a_table_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "metrics.md"
    page.write_text("# Metrics\n")
    with pytest.raises(PlaceError, match="no place"):
        list_metrics.main([], page)
    assert page.read_text() == "# Metrics\n"
