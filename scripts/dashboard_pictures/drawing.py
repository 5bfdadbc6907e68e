"""Draws a dashboard of a recording: panels where Grafana has them, of the kinds that the dashboards use."""

import re
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dashboard_pictures.recording import Answered, Recording
from dashboard_pictures.tables import draw_table
from dashboard_pictures.units import written
from grafana_dashboards.asked import dashboard, marks

Panel = dict[str, Any]

_INK, _FAINT, _BOARD = "#24292e", "#8a96a3", "#f0f1f3"
_LEGEND_POINTS = 6.5
_LINES = (
    "#5a9e4b",
    "#d9a514",
    "#3f7fc1",
    "#d8702a",
    "#c23b4b",
    "#1f8a8a",
    "#8a4fa3",
    "#7a6a3a",
    "#888888",
    "#3b4cc0",
)
NAMED = {
    **{
        "green": "#3f8f3a",
        "red": "#c4302b",
        "orange": "#d8702a",
        "yellow": "#b58a00",
        "blue": "#3f7fc1",
        "purple": "#8a4fa3",
    },
    **{"text": _INK, "transparent": "none"},
}
"""Grafana's names of colours."""
_CELL = 0.34
"""Height of the grid's cell, in inches."""
_WIDTH = 14.4
"""Of the picture, in inches."""


class Board:
    """A figure with the grid of one dashboard."""

    def __init__(self, recording: Recording) -> None:
        self.recording, self.held = recording, dashboard(recording.dashboard)
        self.height = max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in self.held["panels"]) + 1.6
        self.figure = Figure(figsize=(_WIDTH, self.height * _CELL), dpi=100, facecolor=_BOARD)
        FigureCanvasAgg(self.figure)
        self.minutes = recording.minutes

    def save(self, path: Path) -> None:
        """Draws all of it to a PNG."""
        chosen = f"{self.recording.namespace} / {self.recording.run}"
        title = (
            f"{self.held['title']}: {chosen}" if self.held["title"].endswith("Run") else self.held["title"]
        )
        self.figure.text(
            0.006, 1 - 0.8 / self.height, title, fontsize=14, weight="bold", color=_INK, va="center"
        )
        for panel in self.held["panels"]:
            self._panel(panel)
        self.figure.savefig(path, format="png")

    def _place(self, panel: Panel) -> tuple[float, float, float, float]:
        """Left, bottom, width and height in parts of the figure."""
        at = panel["gridPos"]
        top = 1 - (at["y"] + 1.6) / self.height
        return at["x"] / 24, top - at["h"] / self.height, at["w"] / 24, at["h"] / self.height

    def _panel(self, panel: Panel) -> None:
        left, bottom, width, height = self._place(panel)
        if panel["type"] == "row":
            self.figure.text(
                left + 0.006,
                bottom + height / 2,
                f"v  {panel['title']}",
                fontsize=11,
                weight="bold",
                va="center",
            )
            return
        gap_x, gap_y = 0.04 / _WIDTH, 0.04 / (self.height * _CELL)
        frame = (left + gap_x, bottom + gap_y), width - 2 * gap_x, height - 2 * gap_y
        self.figure.add_artist(Rectangle(*frame, facecolor="white", edgecolor="#d5d8dc", lw=0.8, zorder=-1))
        inch_x, inch_y = 1 / _WIDTH, 1 / (self.height * _CELL)
        self.figure.text(
            left + 0.1 * inch_x,
            bottom + height - 0.12 * inch_y,
            panel["title"],
            fontsize=9,
            weight="bold",
            color=_INK,
            va="top",
        )
        drawn = {
            "stat": self._stat,
            "timeseries": self._lines,
            "state-timeline": self._states,
            "table": self._table,
        }
        margin = {"timeseries": (0.72, 0.62), "state-timeline": (1.55, 0.3)}.get(panel["type"], (0.1, 0.08))
        axes = self.figure.add_axes(
            (
                left + margin[0] * inch_x,
                bottom + margin[1] * inch_y,
                width - (margin[0] + 0.15) * inch_x,
                height - (margin[1] + 0.42) * inch_y,
            )
        )
        drawn[panel["type"]](axes, panel)

    def _series(self, panel: Panel) -> list[tuple[str, Answered]]:
        """Each line with its name."""
        return [
            (legend(target["legendFormat"], each.labels), each)
            for target in panel["targets"]
            for each in self.recording.answer(target)
        ]

    def _stat(self, axes: Axes, panel: Panel) -> None:
        axes.axis("off")
        defaults = panel["fieldConfig"]["defaults"]
        found = [(name, last(each)) for name, each in self._series(panel)]
        shown = [(name, value) for name, value in found if value is not None]
        if not shown:
            _centred(axes, defaults.get("noValue", "-"), 0.5, 0.5, 11, _FAINT)
        if panel["options"].get("graphMode") == "area":
            for _, each in self._series(panel):
                values = [float("nan") if value is None else value for value in each.values]
                axes.plot(self.minutes, values, color=_LINES[0], lw=1, alpha=0.5)
            axes.margins(x=0)
            # Below the number.
            low, high = axes.get_ylim()
            axes.set_ylim(low, high + 3 * (high - low))
        for place, (name, value) in enumerate(shown):
            text, color = _stat_text(panel, name, value)
            x = (place + 0.5) / len(shown)
            named = panel["options"].get("textMode") == "value_and_name"
            _centred(axes, text, x, 0.4 if named else 0.5, 20 if len(text) < 9 else 14, color)
            if named:
                _centred(axes, name, x, 0.9, 8, _FAINT)

    def _lines(self, axes: Axes, panel: Panel) -> None:
        self._time(axes)
        defaults = panel["fieldConfig"]["defaults"]
        custom, unit = defaults["custom"], defaults["unit"]
        found = self._series(panel)
        if not found:
            _centred(axes, defaults.get("noValue", "No data"), 0.5, 0.5, 9, _FAINT)
        stacked = custom.get("stacking", {}).get("mode") == "normal"
        base = [0.0] * len(self.minutes)
        for number, (name, each) in enumerate(found):
            color = named_color(panel, name) or _LINES[number % len(_LINES)]
            gaps = [float("nan") if value is None else value for value in each.values]
            style = "steps-post" if custom.get("lineInterpolation") == "stepAfter" else "default"
            top = [low + value for low, value in zip(base, gaps, strict=True)] if stacked else gaps
            now = last(each)
            label = name if now is None else f"{name}  {written(now, unit, defaults.get('decimals'))}"
            axes.plot(self.minutes, top, color=color, lw=1.2, drawstyle=style, label=label)
            if stacked:
                axes.fill_between(self.minutes, base, top, color=color, alpha=0.25, lw=0)
                base = [
                    low if value is None else low + value
                    for low, value in zip(base, each.values, strict=True)
                ]
        for step in defaults.get("thresholds", {}).get("steps", []):
            if step["value"] is not None and custom.get("thresholdsStyle"):
                axes.axhline(step["value"], color=NAMED[step["color"]], lw=0.9, ls="--")
        low, high = axes.get_ylim()
        if (least := defaults.get("min")) is not None:
            # Its margin is a share of what the lines span: little where they lie far above the least.
            low, high = least, high + 0.05 * (high - least)
        axes.set_ylim(low, max(high, low + 1e-9))
        if "max" in defaults:
            axes.set_ylim(top=defaults["max"] * 1.02)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=defaults.get("decimals") == 0))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, unit)))
        self._legend(axes)

    def _legend(self, axes: Axes) -> None:
        """Two rows of names, as many as the panel is wide; Grafana would scroll through the rest."""
        handles, names = axes.get_legend_handles_labels()
        if not names:
            return
        width = axes.get_position().width * self.figure.get_figwidth() * 72 / _LEGEND_POINTS
        room = int(width / 0.58) - 5
        columns = max(1, min(3, len(names), int(room / (max(map(len, names)) + 6))))
        axes.legend(
            handles[: 2 * columns],
            [name if len(name) <= room else f"{name[: room - 1]}…" for name in names[: 2 * columns]],
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.14),
            ncols=columns,
            frameon=False,
            fontsize=_LEGEND_POINTS,
            handlelength=1,
            columnspacing=1,
            borderpad=0,
            labelspacing=0.2,
        )

    def _states(self, axes: Axes, panel: Panel) -> None:
        self._time(axes, marked=False)
        found = self._series(panel)
        length = self.minutes[1] - self.minutes[0]
        for number, (_, each) in enumerate(found):
            bars = [
                (moment, length)
                for moment, value in zip(self.minutes, each.values, strict=True)
                if value == 1
            ]
            axes.broken_barh(bars, (number - 0.38, 0.76), facecolors=_LINES[2], lw=0)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_yticks(range(len(found)), [name for name, _ in found], fontsize=7)

    def _table(self, axes: Axes, panel: Panel) -> None:
        axes.axis("off")
        draw_table(axes, panel, self.recording, NAMED)

    def _time(self, axes: Axes, marked: bool = True) -> None:
        axes.set_xlim(self.minutes[0], self.minutes[-1])
        axes.xaxis.set_major_locator(MaxNLocator(6, prune="upper"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda minutes, _: f"{minutes:g} min"))
        axes.tick_params(labelsize=7, color=_FAINT, colors=_INK, length=2)
        axes.grid(color="#e6e8eb", lw=0.6)
        axes.set_axisbelow(True)
        for side in axes.spines.values():
            side.set_color("#d5d8dc")
        for mark in marks(self.held) if marked else []:
            for number, each in enumerate(self.recording.answer(mark)):
                if mark["useValueForTime"]:
                    moments = {value for value in each.values if value is not None}
                    for moment in moments:
                        at = (moment / 1000 - self.recording.start) / 60
                        axes.axvline(at, color=NAMED["orange"], lw=0.9, ls="--")
                else:
                    held = [at for at, value in zip(self.minutes, each.values, strict=True) if value]
                    if held:
                        axes.axvspan(
                            held[0], held[-1], color=NAMED["blue"], alpha=0.05 + 0.06 * (number % 2), lw=0
                        )


def legend(form: str, labels: dict[str, str]) -> str:
    """The name of a line: each `{{label}}` by its value."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), form).strip()


def last(answer: Answered) -> float | None:
    """Its newest value."""
    return next((value for value in reversed(answer.values) if value is not None), None)


def named_color(panel: Panel, name: str) -> str | None:
    """The colour that a panel gives the line of this name, if any."""
    for override in panel["fieldConfig"]["overrides"]:
        for each in override["properties"]:
            if override["matcher"]["options"] == name and each["id"] == "color":
                return NAMED[each["value"]["fixedColor"]]
    return None


def colored(value: float, steps: list[dict[str, Any]]) -> str:
    """The colour that a value has by thresholds."""
    color = "text"
    for step in steps:
        if step["value"] is None or value >= step["value"]:
            color = step["color"]
    return NAMED[color]


def _stat_text(panel: Panel, name: str, value: float) -> tuple[str, str]:
    defaults = panel["fieldConfig"]["defaults"]
    if panel["options"].get("textMode") == "name":
        return name, named_color(panel, name) or _INK
    for mapping in defaults.get("mappings", []):
        if (word := mapping["options"].get(f"{value:.0f}")) is not None:
            return word["text"], NAMED[word["color"]]
    color = colored(value, defaults["thresholds"]["steps"])
    return written(value, defaults["unit"], defaults.get("decimals")), color


def _centred(axes: Axes, text: str, x: float, y: float, size: float, color: str) -> None:
    axes.text(x, y, text, transform=axes.transAxes, ha="center", va="center", fontsize=size, color=color)
