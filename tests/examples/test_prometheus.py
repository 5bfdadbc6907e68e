"""examples/prometheus.yml: which pods of the operator and of runs it scrapes, and under what names."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bitnet_crds import parse_run
from bitnet_operator.backends import job, pytorchjob
from chart_tools import program
from scraping import JOBS, configuration, write_pods
from small_run import DOCUMENT, first_order

Manifest = dict[str, Any]
Labels = dict[str, str]
CHART = Path(__file__).resolve().parents[2] / "charts/bitnet-operator"


def pod(name: str, template: Manifest, phase: str = "Running") -> Manifest:
    """A pod of this template, as the API server would give it."""
    template = json.loads(json.dumps(template))
    metadata = template["metadata"] | {"name": name, "namespace": "team"}
    return {"metadata": metadata, "spec": template["spec"], "status": {"phase": phase, "podIP": "10.0.0.7"}}


def pytorchjob_pods(phase: str = "Running") -> Iterator[Manifest]:
    """Both pods of a PyTorchJob, as Kubeflow's training operator labels them."""
    run = parse_run(DOCUMENT)
    ((_, child),) = pytorchjob.manifests(run, first_order(run), "trainer:1")
    for kind, replica in child["spec"]["pytorchReplicaSpecs"].items():
        made = pod(f"{phase}-{kind}".lower(), replica["template"], phase)
        made["metadata"]["labels"]["training.kubeflow.org/replica-type"] = kind.lower()
        yield made


def job_pods() -> Iterator[Manifest]:
    """Pods of an Indexed Job, as its controller annotates them."""
    run = parse_run(DOCUMENT)
    *_, (_, child) = job.manifests(run, first_order(run), "trainer:1")
    for index in (0, 1, 10):
        made = pod(f"index-{index}", child["spec"]["template"])
        made["metadata"].setdefault("annotations", {})["batch.kubernetes.io/job-completion-index"] = str(
            index
        )
        yield made


def operator_pods() -> Iterator[Manifest]:
    """Two replicas of the operator, as the chart makes them."""
    rendered = subprocess.run(
        [program("helm"), "template", "trial", str(CHART)], check=True, capture_output=True, text=True
    ).stdout
    (deployment,) = (each for each in yaml.safe_load_all(rendered) if each and each["kind"] == "Deployment")
    for number in (1, 2):
        yield pod(f"operator-{number}", deployment["spec"]["template"])


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Labels]]:
    """By job and pod, the labels of what Prometheus keeps of all these pods: promtool says so."""
    folder = tmp_path_factory.mktemp("prometheus")
    pods, config = folder / "pods.json", folder / "prometheus.yaml"
    write_pods(pods, [*pytorchjob_pods(), *pytorchjob_pods("Succeeded"), *job_pods(), *operator_pods()])
    config.write_text(yaml.safe_dump(configuration(pods)))
    kept: dict[str, dict[str, Labels]] = {}
    for name in JOBS:
        # It waits for that time, whatever it found.
        command = [program("promtool"), "check", "service-discovery", "--timeout=5s", str(config), name]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        targets = [each["labels"] for each in json.loads(found[found.index("[") :]) if each.get("labels")]
        kept[name] = {labels["pod"]: labels for labels in targets}
        assert len(kept[name]) == len(targets)
    return kept


def test_rank_0_of_a_run_that_trains_is_scraped_under_its_name(
    scraped: dict[str, dict[str, Labels]],
) -> None:
    kept = scraped["bitnet-trainer"]
    assert set(kept) == {"running-master", "index-0"}
    for labels in kept.values():
        assert (labels["namespace"], labels["name"]) == ("team", "small")
        assert labels["__address__"] == "10.0.0.7:9400"


def test_each_replica_of_the_operator_is_scraped_at_its_metrics(
    scraped: dict[str, dict[str, Labels]],
) -> None:
    kept = scraped["bitnet-operator"]
    assert set(kept) == {"operator-1", "operator-2"}
    assert {labels["__address__"] for labels in kept.values()} == {"10.0.0.7:9090"}


def test_the_operators_series_keep_the_names_of_their_runs() -> None:
    jobs = {each["job_name"]: each for each in configuration(Path("pods.json"))["scrape_configs"]}
    assert tuple(jobs) == JOBS
    assert jobs["bitnet-operator"]["honor_labels"] is True
