"""Writes both Grafana dashboards into the chart as JSON: `python scripts/draw_dashboards.py`."""

import argparse
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from generated import write
from grafana_dashboards.asked import FOLDER
from grafana_dashboards.fleet import fleet
from grafana_dashboards.run import run


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
    folder.mkdir(parents=True, exist_ok=True)
    return max(write(folder / name, wanted, check=check) for name, wanted in drawn().items())


if __name__ == "__main__":
    raise SystemExit(main())
