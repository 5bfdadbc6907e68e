"""Writes both Grafana dashboards into the chart as JSON: `python scripts/draw_dashboards.py`."""

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from generated import check_asked, write
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
    check = check_asked("draw_dashboards", main.__doc__, arguments)
    folder.mkdir(parents=True, exist_ok=True)
    return max(write(folder / name, wanted, check=check) for name, wanted in drawn().items())


if __name__ == "__main__":
    raise SystemExit(main())
