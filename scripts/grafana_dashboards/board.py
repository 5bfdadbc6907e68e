"""What both dashboards have in common: data source, links to each other, rows, marks over time."""

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models

from grafana_dashboards.panels import PROMETHEUS

FLEET_UID = "bitnet-fleet"
RUN_UID = "bitnet-run"
TAG = "bitnet"

AnyPanel = stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel


@dataclass(frozen=True)
class Mark(Builder[models.AnnotationQuery]):
    """Marks on all panels over time, from Prometheus: a region where `expr` goes on being 1, or a line at the
    time that is its value, in milliseconds."""

    name: str
    expr: str
    title: str
    color: str
    value_is_time: bool = False

    def build(self) -> models.AnnotationQuery:
        """As the dashboard holds it."""
        return _PrometheusAnnotation(self)


class _PrometheusAnnotation(models.AnnotationQuery):
    """An annotation with the fields of Grafana's Prometheus data source, which the SDK's type lacks."""

    def __init__(self, mark: Mark) -> None:
        super().__init__(
            name=mark.name, datasource=PROMETHEUS, enable=True, icon_color=mark.color, expr=mark.expr
        )
        self._mark = mark

    def to_json(self) -> dict[str, object]:
        own = {"step": "60s", "titleFormat": self._mark.title, "useValueForTime": self._mark.value_is_time}
        return super().to_json() | own


def board(
    uid: str,
    title: str,
    description: str,
    variables: Sequence[builders.QueryVariable],
    rows: Sequence[tuple[str, Sequence[AnyPanel]]],
    marks: Sequence[Mark] = (),
    *,
    since: str,
) -> models.Dashboard:
    """A dashboard of rows, each with a title; the first row has none and is what one sees at once."""
    built = builders.Dashboard(title).uid(uid).description(description).tags([TAG]).editable()
    built.tooltip(models.DashboardCursorSync.CROSSHAIR).refresh("30s").time(since, "now").timezone("browser")
    built.with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for variable in variables:
        built.with_variable(variable)
    for mark in marks:
        built.annotation(mark)
    if uid != FLEET_UID:
        back = builders.DashboardLink("All runs").type(models.DashboardLinkType.LINK).url(f"/d/{FLEET_UID}")
        built.link(back.keep_time(True))
    number = 0
    for heading, panels in rows:
        if heading:
            number += 1
            built.with_row(builders.Row(heading).id(number))
        for panel in panels:
            number += 1
            built.with_panel(panel.id(number))
    return built.build()


def variable(name: str, label: str, query: str, several: bool = False) -> builders.QueryVariable:
    """A choice among the values of a label; `several` at once, and all of them at first."""
    built = builders.QueryVariable(name).label(label).datasource(PROMETHEUS)
    built.query({"query": query, "refId": name}).refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    built.sort(models.VariableSort.ALPHABETICAL_ASC).multi(several).include_all(several)
    if several:
        everything = models.VariableOption(selected=True, text=["All"], value=["$__all"])
        built.all_value(".*").current(everything)
    return built
