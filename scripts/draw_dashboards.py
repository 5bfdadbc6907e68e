"""Writes both Grafana dashboards into the chart as JSON: `python scripts/draw_dashboards.py`."""

import argparse
import difflib
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana_dashboards import fleet, run

FOLDER = Path(__file__).resolve().parents[1] / "charts" / "bitnet-operator" / "files" / "dashboards"


def drawn() -> dict[str, str]:
    """The text of each file, by its name: JSON with sorted keys."""
    encoder = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False)
    return {
        f"{name}.json": encoder.encode(build()) + "\n" for name, build in (("fleet", fleet), ("run", run))
    }


def main(arguments: list[str] | None = None, folder: Path = FOLDER) -> int:
    """Writes both dashboards, or checks that they are as the code draws them."""
    parser = argparse.ArgumentParser(prog="python scripts/draw_dashboards.py", description=main.__doc__)
    parser.add_argument(
        "--check", action="store_true", help="fail, and show how, where a file is not up to date"
    )
    check = parser.parse_args(arguments).check
    stale = False
    for name, wanted in drawn().items():
        path = folder / name
        if not check:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted)
            continue
        found = path.read_text() if path.exists() else ""
        lines = difflib.unified_diff(
            found.splitlines(), wanted.splitlines(), name, f"{name} (generated)", lineterm=""
        )
        if differences := "\n".join(lines):
            stale = True
            print(differences)
            print(f"{name} is not up to date. Run `make docs` and commit it.", file=sys.stderr)
    return int(stale)


if __name__ == "__main__":
    raise SystemExit(main())
