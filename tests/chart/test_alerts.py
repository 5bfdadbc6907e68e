"""The alerts: what they say, the series they ask for, and when they fire on recorded runs."""

import itertools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bitnet_crds.series import ALL
from chart_tools import program
from record_series import FOLDER, RULES, values

ROOT = Path(__file__).resolve().parents[2]
RUNBOOKS = ROOT / "docs" / "runbooks"
FILES = sorted(FOLDER.glob("*.yaml"))
QUIET = ("healthy", "preempted")
HEADINGS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]
each_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_valid() -> None:
    promtool("check", "rules", RULES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_alerts_fire_on_sick_series_and_on_no_other(file: Path) -> None:
    promtool("test", "rules", file)


def test_a_recording_is_read_as_it_was_written() -> None:
    for samples in ([None, None, 1.5, 1.5, 1.5, None, None, 2e-05, 0.0], [3.0], [None], [1.0, None, 1.0]):
        assert list(expanded(values(samples))) == samples


def test_each_alert_fires_in_one_of_these_tests() -> None:
    expected = set(re.findall(r'alertname="?:? ?"?(\w+)', "".join(file.read_text() for file in FILES)))
    expected |= {
        case["alertname"]
        for file in FILES
        for test in yaml.safe_load(file.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
    }
    assert {alert["alert"] for alert in ALERTS} <= expected


@pytest.mark.parametrize("name", QUIET)
@pytest.mark.parametrize("at", [0.3, 0.6, 0.9])
def test_healthy_runs_are_quiet_when_the_operator_restarts_and_in_another_pod(
    name: str, at: float, tmp_path: Path
) -> None:
    file = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    (test,) = file["tests"]
    assert all(case["exp_samples"] == [] for case in test["promql_expr_test"])
    recorded, test["input_series"] = test["input_series"], []
    for each in recorded:
        samples = list(expanded(each["values"]))
        gap = int(at * len(samples))
        if each["series"].startswith("bitnet_trainer_"):
            test["input_series"].append(each)
            continue
        # Two minutes without, then the same run from another pod.
        first, second = samples[:gap], [None] * (gap + 4) + samples[gap + 4 :]
        for instance, part in (("one", [*first, *[None] * (len(samples) - gap)]), ("two", second)):
            series = with_label(each["series"], f'instance="{instance}"')
            test["input_series"].append({"series": series, "values": values(part)})
    file["rule_files"] = [str(RULES)]
    (tmp_path / "gap.yaml").write_text(yaml.safe_dump(file))
    promtool("test", "rules", tmp_path / "gap.yaml")


def expanded(notation: str) -> Iterator[float | None]:
    """The samples of promtool's notation, as the recorder writes it."""
    for word in notation.split():
        match = re.fullmatch(r"(_|stale|-?[\d.]+(?:e[-+]\d+)?)([-+]\d+)?(?:x(\d+))?", word)
        assert match, word
        first, step, times = match.groups()
        if first in ("_", "stale"):
            yield from itertools.repeat(None, int(times or 1))
        else:
            for index in range(int(times or 0) + 1):
                yield float(first) + int(step or 0) * index


def with_label(series: str, label: str) -> str:
    name, _, labels = series.partition("{")
    return f"{name}{{{label}{',' if labels else '}'}{labels}"


def test_every_series_that_an_alert_names_exists() -> None:
    known = {each.name for each in ALL if each.type != "histogram"}
    known |= {
        f"{each.name}_{part}"
        for each in ALL
        if each.type == "histogram"
        for part in ("bucket", "count", "sum")
    }
    for alert in ALERTS:
        assert set(re.findall(r"\bbitnet\w+", alert["expr"])) <= known, alert["alert"]


def test_labels_in_queries_are_those_of_the_series() -> None:
    labels = {each.name: set(each.labels) | {"namespace", "name", "pod"} for each in ALL}
    for alert in ALERTS:
        for name, inside in re.findall(r"\b(bitnet\w+)\{([^}]*)\}", alert["expr"]):
            assert set(re.findall(r"(\w+)=", inside)) <= labels[name], (alert["alert"], name)


@each_alert
def test_an_alert_names_the_run_its_numbers_and_its_runbook(alert: dict[str, Any]) -> None:
    words = alert["annotations"]
    assert alert["labels"]["severity"] in ("info", "warning", "critical")
    assert words["runbook_url"] == f"https://bitnet.training/runbooks/{alert['alert']}"
    if alert["alert"].startswith("BitNetRun"):
        for said in (words["summary"], words["description"]):
            assert "{{ $labels.namespace }}/{{ $labels.name }}" in said
        assert "$value" in words["description"]


@each_alert
def test_each_alert_has_a_runbook_page(alert: dict[str, Any]) -> None:
    lines = (RUNBOOKS / f"{alert['alert']}.md").read_text().splitlines()
    assert f"# {alert['alert']}" in lines
    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == HEADINGS


def test_no_runbook_page_is_of_an_alert_that_is_gone() -> None:
    assert {page.stem for page in RUNBOOKS.glob("BitNet*.md")} == {alert["alert"] for alert in ALERTS}
