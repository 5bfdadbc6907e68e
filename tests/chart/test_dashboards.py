"""The Grafana dashboards: queries are PromQL of series that exist, panels fill the grid and are described."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import draw_dashboards
from bitnet_crds.series import OPERATOR, RUNS, TRAINER
from chart_tools import program
from dashboards import NAMES, NEEDS, dashboard, filled_in, marks, panels, queries

ROOT = Path(__file__).resolve().parents[2]
SERIES = re.compile(r"\b(?:bitnetrun|bitnet_operator|bitnet_trainer)_\w+")
SELECTOR = re.compile(r"\b((?:bitnetrun|bitnet_trainer)_\w+)(\{[^}]*\})?")
WIDTH = 24
"""Of Grafana's grid."""


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def asked(of: dict[str, Any]) -> list[str]:
    """Every query of panels and marks, variables as they are."""
    asking = [target for panel in panels(of) for target in panel["targets"]] + marks(of)
    return [each["expr"] for each in asking]


def known_series() -> dict[str, tuple[str, ...]]:
    """Labels of each series that operator and trainer serve, a histogram's as its buckets."""
    return {
        f"{each.name}_bucket" if each.type == "histogram" else each.name: each.labels
        for each in (*TRAINER, *RUNS, *OPERATOR)
    }


def test_the_files_are_what_the_code_draws(tmp_path: Path) -> None:
    assert draw_dashboards.main(["--check"]) == 0
    assert draw_dashboards.main(["--check"], tmp_path) == 1
    assert draw_dashboards.main([], tmp_path) == 0
    assert draw_dashboards.main(["--check"], tmp_path) == 0


def test_every_query_parses(tmp_path: Path) -> None:
    every = [query.expr for name in NAMES for query in queries(name, "team", "qwen3")]
    rules = [{"record": f"query_{number}", "expr": expr} for number, expr in enumerate(every)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    checked = subprocess.run(
        [program("promtool"), "check", "rules", file], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout


def test_no_query_names_a_series_that_does_not_exist(name: str) -> None:
    of = dashboard(name)
    variables = [each["query"]["query"] for each in of["templating"]["list"] if each["type"] == "query"]
    named = {series for query in asked(of) + variables for series in SERIES.findall(query)}
    assert named - known_series().keys() == set()


def test_every_series_is_shown() -> None:
    shown = {series for name in NAMES for query in asked(dashboard(name)) for series in SERIES.findall(query)}
    assert known_series().keys() - shown == {
        "bitnet_trainer_checkpoint_step",  # the operator's is shown: it outlives the pods
        "bitnet_trainer_skipped_steps_total",  # so is this one
        "bitnet_trainer_step",
        "bitnet_trainer_steps",
        "bitnet_trainer_tokens_total",
        "bitnetrun_progress_timestamp_seconds",  # of an alert
    }


def test_the_run_asks_for_the_run_that_was_chosen() -> None:
    for query in asked(dashboard("run")):
        for series, matchers in SELECTOR.findall(query):
            assert 'namespace="$namespace"' in matchers, series
            assert 'name="$name"' in matchers, series


def test_the_fleet_asks_for_the_namespaces_that_were_chosen_and_counts_a_run_once() -> None:
    for query in asked(dashboard("fleet")):
        for series, matchers in SELECTOR.findall(query):
            assert 'namespace=~"$namespace"' in matchers, series
            assert "max by (namespace, name" in query.partition(series)[0], series


def test_every_panel_says_what_it_is_of_what_unit_and_what_its_lines_are(name: str) -> None:
    of = dashboard(name)
    titles = [panel["title"] for panel in panels(of)]
    assert len(set(titles)) == len(titles)
    for panel in panels(of):
        assert panel["title"][0].isupper()
        assert panel["description"].endswith("."), panel["title"]
        assert len(panel["description"]) > 60, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["legendFormat"] or panel["type"] == "table", panel["title"]
            assert "{}" not in target["legendFormat"]


def test_a_legend_names_labels_that_its_query_keeps(name: str) -> None:
    for panel in panels(dashboard(name)):
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                kept = re.search(r"by \(([^)]*)\)", target["expr"])
                assert kept, panel["title"]
                assert label in kept[1].split(", "), panel["title"]


def test_large_figures_of_which_there_are_several_have_names(name: str) -> None:
    for panel in panels(dashboard(name)):
        legends = [target["legendFormat"] for target in panel["targets"]]
        if panel["type"] == "stat" and (len(legends) > 1 or "{{" in legends[0]):
            assert panel["options"]["textMode"] in ("name", "value_and_name"), panel["title"]


def test_series_are_grouped_by_labels_that_they_have(name: str) -> None:
    """What the scrape adds: the run's names, and of which replica it is."""
    scraped = {"namespace", "name", "pod", "instance"}
    for query in asked(dashboard(name)):
        for labels, series in re.findall(r"\bmax by \(([^)]*)\) \((\w+)\{", query):
            assert set(labels.split(", ")) <= {*known_series()[series], *scraped}, query


def test_panels_fill_the_grid_and_none_covers_another(name: str) -> None:
    cells: dict[tuple[int, int], str] = {}
    for panel in dashboard(name)["panels"]:
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in cells, f"{panel['title']} covers {cells[x, y]}"
                cells[x, y] = panel["title"]
    lowest = max(y for _, y in cells)
    assert set(cells) == {(x, y) for x in range(WIDTH) for y in range(lowest + 1)}


def test_ids_are_fixed_so_that_links_and_alerts_find_the_panels() -> None:
    assert {name: dashboard(name)["uid"] for name in NAMES} == {"fleet": "bitnet-fleet", "run": "bitnet-run"}
    for name in NAMES:
        ids = [panel["id"] for panel in dashboard(name)["panels"]]
        assert ids == list(range(1, len(ids) + 1))


def test_a_row_of_the_fleet_leads_to_its_run() -> None:
    variables = {each["name"] for each in dashboard("run")["templating"]["list"]}
    tables = [panel for panel in panels(dashboard("fleet")) if panel["type"] == "table"]
    assert tables
    for table in tables:
        (url,) = re.findall(r'"url": "([^"]+)"', json.dumps(table["fieldConfig"]))
        path, _, arguments = url.partition("?")
        assert path == f"/d/{dashboard('run')['uid']}"
        assert set(re.findall(r"var-(\w+)=", arguments)) == variables
        renamed = table["transformations"][1]["options"]["renameByName"]
        assert set(re.findall(r"__data\.fields\.(\w+)", arguments)) == {renamed["namespace"], renamed["name"]}


def test_what_may_have_no_answer_is_said_of_queries_that_there_are() -> None:
    found = set()
    for name in NAMES:
        for query in queries(name, "team", "qwen3"):
            found |= {(name, query.panel), (name, f"{query.panel}: {query.legend}")}
    assert NEEDS.keys() - found == set()


def test_a_variable_that_has_no_value_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\$pod"):
        filled_in('up{pod="$pod"}', "team", "qwen3", "1m")
