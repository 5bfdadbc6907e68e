"""The alerts as Grafana evaluates them: the same as Prometheus', in every part that decides."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import grafana_alerts

PROMETHEUS = yaml.safe_load((grafana_alerts.FILES / "alerts.yaml").read_text())
GRAFANA = yaml.safe_load((grafana_alerts.FILES / "grafana-alerts.yaml").read_text())


def alerts(of: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    return {rule[name]: rule for group in of["groups"] for rule in group["rules"]}


def test_the_file_is_up_to_date() -> None:
    assert grafana_alerts.main(["--check"]) == 0


def test_both_hold_the_same_alerts_queries_and_durations() -> None:
    theirs, ours = alerts(PROMETHEUS, "alert"), alerts(GRAFANA, "title")
    assert list(ours) == list(theirs)
    for name, rule in ours.items():
        query, threshold = rule["data"]
        assert query["model"]["expr"] == theirs[name]["expr"]
        assert rule["for"] == theirs[name].get("for", "0s")
        assert rule["labels"] == theirs[name]["labels"]
        assert rule["annotations"].keys() == theirs[name]["annotations"].keys()
        assert (rule["condition"], threshold["refId"], threshold["model"]["expression"]) == ("C", "C", "A")
        # Where the query has no value, nothing is wrong.
        assert rule["noDataState"] == "OK"
        assert query["model"]["instant"] is True


def test_values_in_words_are_the_querys() -> None:
    theirs = alerts(PROMETHEUS, "alert")
    for name, rule in alerts(GRAFANA, "title").items():
        for key, text in rule["annotations"].items():
            assert text.count("$values.A.Value") == theirs[name]["annotations"][key].count("$value")
            assert "$value " not in text


def test_uids_are_unique_and_short_enough_for_grafana() -> None:
    uids = [rule["uid"] for rule in alerts(GRAFANA, "title").values()]
    assert len(set(uids)) == len(uids)
    assert max(map(len, uids)) <= 40


def test_a_file_that_says_something_else_is_found_and_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(grafana_alerts.FILES / "alerts.yaml", tmp_path)
    (tmp_path / "grafana-alerts.yaml").write_text("old: true\n")
    assert grafana_alerts.main(["--check"], tmp_path) == 1
    assert "make docs" in capsys.readouterr().err
    assert grafana_alerts.main([], tmp_path) == 0
    assert grafana_alerts.main(["--check"], tmp_path) == 0
