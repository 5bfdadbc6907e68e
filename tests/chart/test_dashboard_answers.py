"""What a real Prometheus answers to the dashboards, where it holds every series that there is."""

from collections.abc import Iterator
from typing import Any

import pytest

import backfilled
from dashboards import NAMES, PanelQuery, queries
from prometheus import Prometheus


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with backfilled.prometheus(tmp_path_factory.mktemp("prometheus")) as found:
        yield found


def answer(prometheus: Prometheus, query: PanelQuery) -> list[dict[str, Any]]:
    """The series that Grafana would draw, of the whole half hour or of its end."""
    if query.instant:
        return prometheus.query(query.expr, at=backfilled.END)
    return prometheus.query_range(query.expr, backfilled.START, backfilled.END, step=30)


def asked(name: str, panel: str, legend: str | None = None) -> list[PanelQuery]:
    every = queries(name, backfilled.NAMESPACE, backfilled.RUN)
    return [each for each in every if each.panel == panel and legend in (None, each.legend)]


def figure(prometheus: Prometheus, name: str, panel: str) -> float:
    """The only value of a panel with one large figure, its newest."""
    ((series,),) = [answer(prometheus, query) for query in asked(name, panel)]
    _, value = series["value"] if "value" in series else series["values"][-1]
    return float(value)


@pytest.mark.parametrize("name", NAMES)
def test_every_query_of_a_panel_has_an_answer(prometheus: Prometheus, name: str) -> None:
    empty = [
        (query.panel, query.legend, query.expr)
        for query in queries(name, backfilled.NAMESPACE, backfilled.RUN)
        if not answer(prometheus, query)
    ]
    assert empty == []


def test_a_run_of_which_two_replicas_tell_counts_once(prometheus: Prometheus) -> None:
    assert figure(prometheus, "fleet", "Training") == 1
    assert figure(prometheus, "fleet", "Pending") == 1
    assert figure(prometheus, "fleet", "Not well") == 1
    assert figure(prometheus, "fleet", "GPUs held") == backfilled.GPUS
    assert figure(prometheus, "fleet", "Leader") == 1
    for query in asked("fleet", "Runs"):
        names = [series["metric"]["name"] for series in answer(prometheus, query)]
        assert names.count(backfilled.RUN) == 1, query.legend
        assert names.count(backfilled.WAITS) <= 1, query.legend


def test_what_is_worst_stands_for_a_runs_health(prometheus: Prometheus) -> None:
    """It is stalled, and its checkpoints fail."""
    assert figure(prometheus, "run", "Health") == 4


def test_nothing_is_counted_where_there_is_no_run(prometheus: Prometheus) -> None:
    for query in queries("fleet", "another", "none"):
        if query.panel in ("Training", "Not well", "Failed", "Pending", "Speed"):
            (series,) = answer(prometheus, query)
            newest = series["value"] if query.instant else series["values"][-1]
            assert newest[1] == "0", query.panel


def test_a_segment_is_marked_when_it_began(prometheus: Prometheus) -> None:
    ((segment,),) = [answer(prometheus, query) for query in asked("run", "marks: Segments")]
    assert segment["metric"]["segment"] == "2"
    assert {float(value) for _, value in segment["values"]} == {1000 * (backfilled.START + 60)}


def test_lines_are_few_enough_to_be_told_apart(prometheus: Prometheus) -> None:
    for name in NAMES:
        for query in queries(name, backfilled.NAMESPACE, backfilled.RUN):
            assert len(answer(prometheus, query)) <= 10, query.panel
