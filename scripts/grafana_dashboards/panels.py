"""Kinds of panels, each drawn the same way on both dashboards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import common as style
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphDrawStyle,
    GraphGradientMode,
    GraphTresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    LineInterpolation,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${datasource}")

Panel = TypeVar("Panel", stat.Panel, statetimeline.Panel, table.Panel, timeseries.Panel)
Asked = TypeVar("Asked", "Query", "Column")
Colors = Mapping[float | None, str]
"""Colour from a value on; None is below all."""
PLAIN: Colors = {None: "text"}


@dataclass(frozen=True)
class Query:
    """One query of a panel, and what its lines are called: `{{label}}` is the label's value."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Column:
    """One column of a table: what is asked, its unit, and how it is coloured or drawn."""

    title: str
    expr: str
    unit: str = "short"
    label: bool = False
    """Labels of the query's series are shown, and not its value."""
    decimals: int | None = None
    colors: Colors | None = None
    words: Mapping[int, tuple[str, str]] | None = None
    """Text and colour instead of each value."""
    gauge: bool = False
    """As a bar from 0 to 1."""


def value(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    colors: Colors = PLAIN,
    words: Mapping[int, tuple[str, str]] | None = None,
    names: Mapping[str, str] | None = None,
    history: bool = False,
    decimals: int | None = None,
    absent: str = "–",
    width: int = 3,
) -> stat.Panel:
    """Large figures, the newest of each query. `names` shows the series' names instead, each in its colour;
    `history` draws a faint line of the past; `absent` stands where there is no figure."""
    panel = _described(stat.Panel(), title, description, unit, width, height=4)
    for letter, query in _lettered(queries):
        panel.with_target(_asked(letter, query, instant=not history))
    panel.thresholds(_thresholds(colors)).no_value(absent)
    panel.color_mode(BigValueColorMode.VALUE)
    panel.graph_mode(BigValueGraphMode.AREA if history else BigValueGraphMode.NONE)
    panel.reduce_options(style.ReduceDataOptions().calcs(["lastNotNull"]))
    several = len(queries) > 1 or "{{" in queries[0].legend
    panel.text_mode(BigValueTextMode.VALUE_AND_NAME if several else BigValueTextMode.VALUE)
    if decimals is not None:
        panel.decimals(decimals)
    if words is not None:
        panel.mappings([_words(words)])
    if names is not None:
        panel.text_mode(BigValueTextMode.NAME)
        for name, color in names.items():
            panel.override_by_name(name, [_colored(color)])
    return panel


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    height: int = 8,
    low: float | None = None,
    high: float | None = None,
    stacked: bool = False,
    counts: bool = False,
    colors: Colors | None = None,
    names: Mapping[str, str] | None = None,
    absent: str = "",
) -> timeseries.Panel:
    """Lines over time, their newest values in the legend. `counts` steps from value to value; `colors` draws
    a threshold, dashed; `names` has colours of lines; `absent` stands where no query has data."""
    panel = _described(timeseries.Panel(), title, description, unit, width, height)
    for letter, query in _lettered(queries):
        panel.with_target(_asked(letter, query))
    panel.draw_style(GraphDrawStyle.LINE).line_width(1).show_points(VisibilityMode.NEVER)
    panel.fill_opacity(30 if stacked else 8).gradient_mode(GraphGradientMode.NONE)
    panel.tooltip(style.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    legend = style.VizLegendOptions().show_legend(True).calcs(["lastNotNull"])
    panel.legend(legend.display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM))
    if stacked:
        panel.stacking(style.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if counts:
        panel.decimals(0).line_interpolation(LineInterpolation.STEP_AFTER)
    if low is not None:
        panel.min(low)
    if high is not None:
        panel.max(high)
    if colors is not None:
        dashed = style.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED)
        panel.thresholds(_thresholds(colors)).thresholds_style(dashed)
    for name, color in (names or {}).items():
        panel.override_by_name(name, [_colored(color)])
    if absent:
        panel.no_value(absent)
    return panel


def states(
    title: str, description: str, *queries: Query, width: int = 12, height: int = 7
) -> statetimeline.Panel:
    """A bar for each state, from when to when it held."""
    panel = _described(statetimeline.Panel(), title, description, "none", width, height)
    for letter, query in _lettered(queries):
        panel.with_target(_asked(letter, query))
    panel.mappings([_words({0: ("no", "transparent"), 1: ("yes", "blue")})])
    panel.show_value(VisibilityMode.NEVER).merge_values(True).row_height(0.8).fill_opacity(70)
    panel.legend(style.VizLegendOptions().show_legend(False).display_mode(LegendDisplayMode.HIDDEN))
    return panel


def rows(
    title: str,
    description: str,
    columns: Sequence[Column],
    *,
    labels: Mapping[str, str],
    link: tuple[str, str, str],
    absent: str,
    worst: str = "",
    height: int,
    width: int = 24,
) -> table.Panel:
    """A table with one row for each set of `labels` (label to title), and a cell for each query. `link` is
    the title of a label's column, what it links to, and that link's tooltip. Of the column `worst` the
    highest value stands on top."""
    panel = _described(table.Panel(), title, description, "short", width, height).no_value(absent)
    renamed, hidden = dict(labels), {"Time": True}
    for letter, column in _lettered(columns):
        panel.with_target(
            _asked(letter, Query(column.expr, column.title)).instant().format(PromQueryFormat.TABLE)
        )
        field = f"Value #{letter}" if len(columns) > 1 else "Value"
        if column.label:
            hidden[field] = True
            continue
        renamed[field] = column.title
        panel.override_by_name(column.title, _cell(column))
    panel.show_header(True)
    if worst:
        panel.sort_by([style.TableSortByFieldState().display_name(worst).desc(True)])
    place = {field: number for number, field in enumerate(renamed)}
    organize = {"excludeByName": hidden, "indexByName": place, "renameByName": renamed}
    panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    panel.with_transformation(DataTransformerConfig(id_val="organize", options=organize))
    linked, url, tooltip = link
    links = [{"title": tooltip, "url": url}]
    panel.override_by_name(linked, [DynamicConfigValue(id_val="links", value=links)])
    return panel


def _described(panel: Panel, title: str, description: str, unit: str, width: int, height: int) -> Panel:
    panel.title(title).description(description).unit(unit).datasource(PROMETHEUS)
    panel.span(width).height(height)
    return panel


def _lettered(queries: Sequence[Asked]) -> list[tuple[str, Asked]]:
    return [(chr(ord("A") + number), query) for number, query in enumerate(queries)]


def _asked(letter: str, query: Query, instant: bool = False) -> prometheus.Dataquery:
    asked = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter)
    return asked.datasource(PROMETHEUS).instant() if instant else asked.datasource(PROMETHEUS).range()


def _thresholds(colors: Colors) -> builders.ThresholdsConfig:
    steps = [Threshold(value=start, color=color) for start, color in colors.items()]
    return builders.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _words(words: Mapping[int, tuple[str, str]]) -> ValueMap:
    results = {
        str(number): ValueMappingResult(text=text, color=color, index=place)
        for place, (number, (text, color)) in enumerate(words.items())
    }
    return ValueMap(options=results)


def _colored(color: str) -> DynamicConfigValue:
    fixed = builders.FieldColor().mode(FieldColorModeId.FIXED).fixed_color(color)
    return DynamicConfigValue(id_val="color", value=fixed.build())


def _cell(column: Column) -> list[DynamicConfigValue]:
    properties: dict[str, object] = {"unit": column.unit}
    if column.decimals is not None:
        properties["decimals"] = column.decimals
    if column.colors is not None:
        properties["thresholds"] = _thresholds(column.colors).build()
    if column.words is not None:
        properties["mappings"] = [_words(column.words)]
    if column.gauge:
        properties |= {"min": 0, "max": 1, "custom.cellOptions": {"type": "gauge", "mode": "basic"}}
    elif column.words is not None or column.colors is not None:
        properties["custom.cellOptions"] = {"type": "color-text"}
    return [DynamicConfigValue(id_val=name, value=held) for name, held in properties.items()]
