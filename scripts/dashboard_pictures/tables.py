"""Draws a table of a dashboard, its queries' series merged by their run as Grafana merges them."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from dashboard_pictures.recording import Recording
from dashboard_pictures.units import written

ROWS = 12
"""At most, of a picture."""


def merged(panel: dict[str, Any], recording: Recording) -> list[dict[str, str | float]]:
    """Titles and cells of each run, or of each series of a single query, as the table sorts them."""
    organized = panel["transformations"][1]["options"]
    several = len(panel["targets"]) > 1
    rows: dict[tuple[str, ...], dict[str, str | float]] = {}
    for target in panel["targets"]:
        field = f"Value #{target['refId']}" if several else "Value"
        for each in recording.answer(target):
            of_run = (each.labels.get("namespace", ""), each.labels.get("name", ""))
            key = of_run if several else tuple(each.labels.values())
            row = rows.setdefault(key, {})
            cells: dict[str, str | float | None] = {**each.labels, field: each.values[0]}
            for name, cell in cells.items():
                if cell is not None and name in organized["renameByName"]:
                    row[organized["renameByName"][name]] = cell
    found = [rows[key] for key in sorted(rows)]
    for order in panel["options"].get("sortBy", []):
        found.sort(key=lambda row: float(row.get(order["displayName"], 0)), reverse=order["desc"])
    return found


def draw_table(axes: Axes, panel: dict[str, Any], recording: Recording, colors: dict[str, str]) -> None:
    """Header and rows, as many as there is room for."""
    titles = sorted(
        panel["transformations"][1]["options"]["renameByName"].items(),
        key=lambda named: panel["transformations"][1]["options"]["indexByName"][named[0]],
    )
    rows = merged(panel, recording)
    if not rows:
        text = panel["fieldConfig"]["defaults"]["noValue"]
        axes.text(
            0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, fontsize=9, color="#8a96a3"
        )
    how = {
        override["matcher"]["options"]: {each["id"]: each["value"] for each in override["properties"]}
        for override in panel["fieldConfig"]["overrides"]
    }
    axes.set_xlim(0, len(titles))
    axes.set_ylim(panel["gridPos"]["h"] - 1.2, 0)
    for number, (_, title) in enumerate(titles):
        axes.text(number + 0.05, 0.45, title, fontsize=8, weight="bold", va="center", color="#3f7fc1")
    axes.axhline(0.95, color="#d5d8dc", lw=0.8)
    for line, row in enumerate(rows[:ROWS]):
        y = 1.45 + 0.9 * line
        for number, (_, title) in enumerate(titles):
            if (cell := row.get(title)) is not None:
                _cell(axes, number, y, cell, how.get(title, {}), colors)


def _cell(
    axes: Axes, x: float, y: float, cell: str | float, how: dict[str, Any], colors: dict[str, str]
) -> None:
    if isinstance(cell, str):
        linked = "links" in how
        axes.text(x + 0.05, y, cell, fontsize=8, va="center", color="#3f7fc1" if linked else "#24292e")
        return
    text, color = written(cell, how.get("unit", "short"), how.get("decimals")), "#24292e"
    for mapping in how.get("mappings", []):
        if (word := mapping["options"].get(f"{cell:.0f}")) is not None:
            text, color = word["text"], colors[word["color"]]
    for step in how.get("thresholds", {}).get("steps", []):
        if step["value"] is not None and cell >= step["value"]:
            color = colors[step["color"]]
    if how.get("custom.cellOptions", {}).get("type") == "gauge":
        axes.add_patch(Rectangle((x + 0.05, y - 0.28), 0.4, 0.56, facecolor="#e6e8eb"))
        axes.add_patch(Rectangle((x + 0.05, y - 0.28), 0.4 * min(cell, 1), 0.56, facecolor="#5a9e4b"))
        x += 0.42
    axes.text(x + 0.05, y, text, fontsize=8, va="center", color=color)
