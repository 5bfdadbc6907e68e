"""Lists the series of /metrics in docs/metrics.md from their table: `python scripts/list_metrics.py`."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from bitnet_crds.series import OPERATOR, RUNS, TRAINER, Series
from generated import check_asked, put, write

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
TABLES = {"TRAINER": TRAINER, "RUNS": RUNS, "OPERATOR": OPERATOR}
END = "<!-- What was generated ends here. -->"


def begin(name: str) -> str:
    """The line before a table."""
    return f"<!-- Generated from {name} in crds/bitnet_crds/series.py by `make docs`. Do not edit. -->"


def table(rows: Iterable[Series]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| Series | Type | Labels | Unit | Meaning |"
    yield "| --- | --- | --- | --- | --- |"
    for row in rows:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        yield f"| `{row.name}` | {row.type} | {labels} | {row.unit} | {row.meaning} |"


def listed(page: str) -> str:
    """The page with the tables of now. Raises PlaceError where it has no place for one."""
    for name, rows in TABLES.items():
        page = put(page, begin(name), END, list(table(rows)))
    return page


def main(arguments: list[str] | None = None, page: Path = PAGE) -> int:
    """Writes the tables into the page, or checks that they are there."""
    check = check_asked("list_metrics", main.__doc__, arguments)
    return write(page, listed(page.read_text()), check=check)


if __name__ == "__main__":
    raise SystemExit(main())
