"""The chart's README as it lists the values: each with its default and the comment above it."""

from pathlib import Path

import pytest

import chart_readme
from generated import PlaceError

VALUES = """# Every value.

# The first.
one: 1
# What is
# in two lines.
two: {}
three:
  # Below.
  four: [a|b]
# One row for all.
five:
  six: 6
"""


def test_the_page_lists_the_values_of_the_chart() -> None:
    assert chart_readme.main(["--check"]) == 0


def test_each_value_has_its_default_and_its_comment() -> None:
    assert list(chart_readme.rows(VALUES)) == [
        ("one", "1", "The first."),
        ("two", "{}", "What is in two lines."),
        ("three.four", '["a|b"]', "Below."),
        ("five", '{"six": 6}', "One row for all."),
    ]
    assert "a\\|b" in "\n".join(chart_readme.table(VALUES))


@pytest.mark.parametrize("values", ["a: 1\n", "# All.\na:\n  # This.\n  b: 1\n  c: 2\n", "- 1\n"])
def test_a_value_without_a_comment_is_an_error(values: str) -> None:
    with pytest.raises(chart_readme.UndocumentedError):
        list(chart_readme.rows(values))


def test_a_page_that_says_something_else_is_found_and_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "values.yaml").write_text(VALUES)
    page = tmp_path / "README.md"
    page.write_text(f"# Chart\n{chart_readme.BEGIN}\nold\n{chart_readme.END}\nby hand\n")
    assert chart_readme.main(["--check"], tmp_path) == 1
    assert "-old" in capsys.readouterr().out
    assert chart_readme.main([], tmp_path) == 0
    assert chart_readme.main(["--check"], tmp_path) == 0
    assert page.read_text().endswith("by hand\n")
    page.write_text("# Chart\n")
    with pytest.raises(PlaceError, match="no place"):
        chart_readme.main([], tmp_path)
