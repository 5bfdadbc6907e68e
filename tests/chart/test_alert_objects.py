"""Alerts and dashboards as the chart's objects have them: as in its files, but for what the values say."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart import CHART, MANAGED_PROMETHEUS, PROMETHEUS_OPERATOR, render

RULES = """# Two groups, one of which has nothing but an alert.
groups:
  - name: first
    interval: 30s
    rules:
      - record: bitnet:runs
        expr: count(bitnetrun_step)
      - alert: A
        expr: 'bitnetrun_loss{name=~".+"} > 1000000'
        for: 5m
        keep_firing_for: 10m
        labels: {severity: warning}
        annotations:
          summary: '{{ $labels.namespace }}/{{ $labels.name }}: {{ $value | humanize }}'
          runbook_url: https://bitnet.training/runbooks/A
  - name: second
    rules:
      - alert: B
        expr: up == 0
        annotations: {runbook_url: https://bitnet.training/runbooks/B}
"""
GRAFANA = """apiVersion: 1
groups:
  - name: first
    folder: BitNet
    rules:
      - title: A
        data: [{datasourceUid: prometheus}, {datasourceUid: __expr__}]
        labels: {severity: warning}
        annotations: {summary: '{{ $labels.name }}', runbook_url: https://bitnet.training/runbooks/A}
      - title: B
"""
BOTH = PROMETHEUS_OPERATOR + MANAGED_PROMETHEUS


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with alerts that these tests know."""
    return chart_with(RULES, tmp_path_factory.mktemp("chart"))


def chart_with(rules: str, folder: Path) -> Path:
    """A copy of the chart with these alerts."""
    copied = folder / "bitnet-operator"
    shutil.copytree(CHART, copied)
    (copied / "files/alerts.yaml").write_text(rules)
    (copied / "files/grafana-alerts.yaml").write_text(GRAFANA)
    return copied


def groups(found: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    name = {"PrometheusRule": "PrometheusRule", "ClusterRules": "ClusterRules bitnet-operator"}[kind]
    return list(found[name]["spec"]["groups"])


def test_the_rules_are_those_of_the_file(chart: Path) -> None:
    found = render(apis=BOTH, chart=chart)
    assert groups(found, "PrometheusRule") == yaml.safe_load(RULES)["groups"]


def test_managed_prometheus_has_them_less_what_it_does_not_know(chart: Path) -> None:
    wanted = yaml.safe_load(RULES)["groups"]
    del wanted[0]["rules"][1]["keep_firing_for"]
    wanted[1]["interval"] = "1m"
    assert groups(render(apis=BOTH, chart=chart), "ClusterRules") == wanted


@pytest.mark.parametrize("kind", ["PrometheusRule", "ClusterRules"])
def test_the_values_say_where_runbooks_are_which_labels_there_are_and_what_is_left_out(
    chart: Path, kind: str
) -> None:
    values = 'alerts={"runbookUrl":"https://wiki.example/r/","labels":{"team":"a","severity":"page"},"disabled":["B"]}'
    (group,) = groups(render(values, apis=BOTH, chart=chart), kind)
    record, alert = group["rules"]
    assert alert["annotations"]["runbook_url"] == "https://wiki.example/r/A"
    assert alert["annotations"]["summary"].startswith("{{ $labels.namespace }}/{{ $labels.name }}")
    assert alert["labels"] == {"team": "a", "severity": "page"}
    assert "labels" not in record


@pytest.mark.parametrize(
    ("kind", "switch"), [("PrometheusRule", "prometheusRule"), ("ClusterRules", "rules")]
)
def test_rules_are_made_where_the_cluster_has_their_kind(chart: Path, kind: str, switch: str) -> None:
    value = f"monitoring.{'managedPrometheus.' if switch == 'rules' else ''}{switch}.enabled"
    assert not any(key.startswith(kind) for key in render(chart=chart))
    assert not any(key.startswith(kind) for key in render(f"{value}=false", apis=BOTH, chart=chart))
    assert groups(render(f"{value}=true", chart=chart), kind)


@pytest.mark.parametrize(("apis", "grafana"), [(BOTH, "false"), ((), "true")])
def test_an_alert_that_does_not_exist_cannot_be_left_out(
    chart: Path, apis: tuple[str, ...], grafana: str
) -> None:
    values = ('alerts.disabled=["C"]', f"grafanaAlerts.enabled={grafana}")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render(*values, apis=apis, chart=chart)
    assert "alerts.disabled: there is no alert C; there are A, B" in refused.value.stderr


def test_with_every_alert_left_out_and_no_record_there_are_no_rules(tmp_path: Path) -> None:
    second = yaml.safe_dump({"groups": yaml.safe_load(RULES)["groups"][1:]})
    found = render('alerts.disabled=["B"]', apis=BOTH, chart=chart_with(second, tmp_path))
    assert not {"PrometheusRule", "ClusterRules bitnet-operator"} & set(found)


def test_grafana_has_the_alerts_where_it_is_asked_to(chart: Path) -> None:
    assert "ConfigMap grafana-alerts" not in render(chart=chart)
    values = (
        'grafanaAlerts={"enabled":true,"namespace":"grafana","datasourceUid":"mine"}',
        'alerts={"labels":{"team":"a"},"disabled":["B"],"runbookUrl":"https://wiki.example"}',
    )
    found = render(*values, chart=chart)["ConfigMap grafana grafana-alerts"]
    assert found["metadata"]["labels"]["grafana_alert"] == "1"
    (content,) = found["data"].values()
    (group,) = yaml.safe_load(content)["groups"]
    (rule,) = group["rules"]
    assert rule == {
        "title": "A",
        "data": [{"datasourceUid": "mine"}, {"datasourceUid": "__expr__"}],
        "labels": {"severity": "warning", "team": "a"},
        "annotations": {"summary": "{{ $labels.name }}", "runbook_url": "https://wiki.example/A"},
    }


def test_the_charts_own_alerts_are_all_there_and_lead_to_the_runbooks_of_the_values() -> None:
    values = ('alerts.runbookUrl="https://wiki.example"', "grafanaAlerts.enabled=true")
    found = render(*values, apis=BOTH)
    wanted = {
        rule["alert"]: f"https://wiki.example/{rule['alert']}"
        for group in yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    (provisioned,) = found["ConfigMap grafana-alerts"]["data"].values()
    for made, name in (
        (groups(found, "PrometheusRule"), "alert"),
        (groups(found, "ClusterRules"), "alert"),
        (yaml.safe_load(provisioned)["groups"], "title"),
    ):
        alerts = [rule for group in made for rule in group["rules"] if name in rule]
        assert {rule[name]: rule["annotations"]["runbook_url"] for rule in alerts} == wanted


def test_every_dashboard_is_a_config_map_that_the_sidecar_finds() -> None:
    files = {path.stem: path.read_text() for path in (CHART / "files/dashboards").glob("*.json")}
    assert files
    for stem, text in files.items():
        found = render()[f"ConfigMap dashboard-{stem}"]
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert found["metadata"]["annotations"] == {"grafana_folder": "BitNet"}
        ((name, content),) = found["data"].items()
        assert name == f"bitnet-{stem}.json"
        assert json.loads(content) == json.loads(text)


def test_dashboards_go_where_the_values_say() -> None:
    value = '"namespace":"grafana","label":"d","labelValue":"yes","folderAnnotation":"f","folder":"Mine"'
    found = render(f"dashboards={{{value}}}")["ConfigMap grafana dashboard-run"]
    assert found["metadata"]["labels"]["d"] == "yes"
    assert found["metadata"]["annotations"] == {"f": "Mine"}
    assert not any("dashboard" in key for key in render("dashboards.enabled=false"))
