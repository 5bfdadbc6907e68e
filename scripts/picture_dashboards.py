"""Draws pictures of the dashboards for docs/monitoring.md: `python scripts/picture_dashboards.py`."""

import argparse
from pathlib import Path

from dashboard_pictures.drawing import Board
from dashboard_pictures.recording import keep, kept, record
from grafana_dashboards.asked import NAMES

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def main(arguments: list[str] | None = None, images: Path = IMAGES) -> None:
    """Draws what was recorded; with --prometheus it is recorded anew, of a run that was scraped."""
    parser = argparse.ArgumentParser(prog="python scripts/picture_dashboards.py", description=main.__doc__)
    parser.add_argument(
        "dashboard", nargs="*", choices=[*NAMES, []], help="one of them; all that were recorded if left out"
    )
    parser.add_argument("--prometheus", help="its address, such as http://127.0.0.1:9090")
    parser.add_argument(
        "--namespace", default="default", help="of the run; a regular expression for the fleet"
    )
    parser.add_argument("--name", default="quickstart", help="of the run")
    parser.add_argument("--start", type=float, help="seconds since 1970")
    parser.add_argument("--end", type=float, help="seconds since 1970")
    given = parser.parse_args(arguments)
    recorded_ones = [
        name for name in NAMES if given.prometheus or (images / f"dashboard-{name}.json").exists()
    ]
    for name in given.dashboard or recorded_ones:
        recorded = images / f"dashboard-{name}.json"
        if given.prometheus:
            found = record(given.prometheus, name, given.namespace, given.name, given.start, given.end)
            keep(found, recorded)
        Board(kept(recorded)).save(images / f"dashboard-{name}.png")


if __name__ == "__main__":
    main()
