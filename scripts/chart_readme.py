"""Writes the table of values into the chart's README from values.yaml: `python scripts/chart_readme.py`."""

import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from generated import check_asked, put, write

CHART = Path(__file__).resolve().parents[1] / "charts" / "bitnet-operator"
BEGIN = "<!-- Generated from values.yaml by `make docs`. Do not edit. -->"
END = "<!-- What was generated ends here. -->"


class UndocumentedError(Exception):
    """A value has no comment."""


def rows(values: str) -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of each value. A value that holds others is one row where none of them has a
    comment of its own; where one has, each needs one.

    Raises UndocumentedError for a value without a comment.
    """
    root = yaml.compose(values)
    if not isinstance(root, yaml.MappingNode):
        raise UndocumentedError("values.yaml holds no values")
    yield from _below("", root, values.splitlines())


def _below(prefix: str, parent: yaml.MappingNode, lines: list[str]) -> Iterator[tuple[str, str, str]]:
    for key, value in parent.value:
        name, comment = f"{prefix}{key.value}", _comment(lines, key.start_mark.line)
        if isinstance(value, yaml.MappingNode) and _explained(value, lines):
            yield from _below(f"{name}.", value, lines)
            continue
        if not comment:
            raise UndocumentedError(f"values.yaml:{key.start_mark.line + 1}: say above {name} what it is")
        yield name, _default(value), comment


def _explained(parent: yaml.MappingNode, lines: list[str]) -> bool:
    """Whether a value below has a comment of its own."""
    return any(
        _comment(lines, key.start_mark.line)
        or (isinstance(value, yaml.MappingNode) and _explained(value, lines))
        for key, value in parent.value
    )


def _comment(lines: list[str], number: int) -> str:
    """The comment right above a line, as one line; empty where there is none."""
    found: list[str] = []
    while number and (line := lines[number - 1].strip()).startswith("#"):
        found.insert(0, line.removeprefix("#").strip())
        number -= 1
    return " ".join(found)


def _default(value: yaml.Node) -> str:
    """A default in one line."""
    return json.dumps(yaml.safe_load(yaml.serialize(value)), ensure_ascii=False)


def table(values: str) -> Iterator[str]:
    """The lines of a Markdown table of all values."""
    yield "| Value | Default | What it is |"
    yield "| --- | --- | --- |"
    for cells in rows(values):
        name, default, meaning = (cell.replace("|", "\\|") for cell in cells)
        yield f"| `{name}` | `{default}` | {meaning} |"


def written(page: str, values: str) -> str:
    """The page with the table of now. Raises PlaceError where it has no place for it."""
    return put(page, BEGIN, END, list(table(values)))


def main(arguments: list[str] | None = None, chart: Path = CHART) -> int:
    """Writes the table into the page, or checks that it is there."""
    check, page = check_asked("chart_readme", main.__doc__, arguments), chart / "README.md"
    return write(page, written(page.read_text(), (chart / "values.yaml").read_text()), check=check)


if __name__ == "__main__":
    raise SystemExit(main())
