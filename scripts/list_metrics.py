"""Lists the series of /metrics in docs/metrics.md from their table: `python scripts/list_metrics.py`."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from bitnet_crds.series import OPERATOR, RUNS, TRAINER, Series
from generated import put, write

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
    parser = argparse.ArgumentParser(prog="python scripts/list_metrics.py", description=main.__doc__)
    parser.add_argument(
        "--check", action="store_true", help="fail, and show how, where the page is not up to date"
    )
    check = parser.parse_args(arguments).check
    return write(page, listed(page.read_text()), check=check)


if __name__ == "__main__":
    raise SystemExit(main())
