"""What scripts that generate files share: a place in a page, and the check that a file is up to date."""

import argparse
import difflib
import sys
from pathlib import Path


class PlaceError(Exception):
    """The page has no place for what is generated."""


def put(page: str, begin: str, end: str, lines: list[str]) -> str:
    """The page with these lines between `begin` and the next `end`. Raises PlaceError where it has none."""
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise PlaceError(f"no place for what is generated: write a line `{begin}` and, below, `{end}`")
    return before + begin + "\n".join(["", "", *lines, "", ""]) + end + after


def check_asked(script: str, description: str | None, arguments: list[str] | None) -> bool:
    """Whether a script's command line asks to check what it would write; `arguments` stand for sys.argv's."""
    parser = argparse.ArgumentParser(prog=f"python scripts/{script}.py", description=description)
    parser.add_argument(
        "--check", action="store_true", help="fail, and show how, where what is written is not up to date"
    )
    return bool(parser.parse_args(arguments).check)


def write(path: Path, wanted: str, *, check: bool) -> int:
    """Writes the file; with `check` it only tells, by 1, that it is not up to date, and shows how."""
    if not check:
        path.write_text(wanted)
        return 0
    found = path.read_text() if path.exists() else ""
    lines = difflib.unified_diff(
        found.splitlines(), wanted.splitlines(), path.name, f"{path.name} (generated)", lineterm=""
    )
    if differences := "\n".join(lines):
        print(differences)
        print(f"{path.name} is not up to date. Run `make docs` and commit it.", file=sys.stderr)
        return 1
    return 0
