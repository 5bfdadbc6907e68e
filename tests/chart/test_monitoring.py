"""The chart's monitors: made where the cluster has their kinds, of series that keep their run's labels."""

import re
import subprocess

import pytest

from bitnet_crds.protocol import PROGRESS_PORT
from bitnet_operator.backends import job, pytorchjob
from bitnet_operator.desired import RUN_LABEL
from chart import MANAGED_PROMETHEUS, PROMETHEUS_OPERATOR, Manifest, container, render

BOTH = PROMETHEUS_OPERATOR + MANAGED_PROMETHEUS
SWITCHES = {
    "ServiceMonitor": "serviceMonitor",
    "PodMonitor trainers": "podMonitor",
    "ClusterPodMonitoring bitnet-operator": "managedPrometheus.operator",
    "ClusterPodMonitoring bitnet-trainer": "managedPrometheus.trainers",
    "ClusterPodMonitoring bitnet-trainer-job": "managedPrometheus.trainers",
}
"""What is made, and the value that says whether."""


@pytest.mark.parametrize(("made", "switch"), SWITCHES.items())
def test_a_monitor_is_made_where_the_cluster_has_its_kind_unless_a_value_says_otherwise(
    made: str, switch: str
) -> None:
    assert made not in render()
    assert made in render(apis=BOTH)
    assert made not in render(f"monitoring.{switch}.enabled=false", apis=BOTH)
    assert made in render(f"monitoring.{switch}.enabled=true")


def test_a_kind_that_is_there_alone_is_enough() -> None:
    (only,) = [each for each in PROMETHEUS_OPERATOR if each.endswith("/PodMonitor")]
    found = render(apis=[only])
    assert "PodMonitor trainers" in found
    assert "ServiceMonitor" not in found


def test_every_monitor_has_the_labels_by_which_a_prometheus_finds_it() -> None:
    found = render('monitoring={"labels":{"release":"prometheus"},"interval":"1m"}', apis=BOTH)
    for made in SWITCHES:
        assert found[made]["metadata"]["labels"]["release"] == "prometheus"
        spec = found[made]["spec"]
        (endpoint,) = spec.get("endpoints") or spec["podMetricsEndpoints"]
        assert endpoint["interval"] == "1m"


def relabeled(endpoint: Manifest, labels: dict[str, str]) -> dict[str, str] | None:
    """A target's labels once Prometheus has relabeled it; None where it is left out."""
    found = dict(labels)
    for rule in endpoint["relabelings"]:
        joined = rule.get("separator", ";").join(found.get(name, "") for name in rule.get("sourceLabels", []))
        match = re.fullmatch(rule.get("regex", "(.*)"), joined)
        if rule.get("action") == "keep":
            if not match:
                return None
        elif match:
            found[rule["targetLabel"]] = rule.get("replacement", joined)
    return found


def test_the_operator_is_scraped_as_one_job_whose_series_keep_their_labels() -> None:
    monitor = render(apis=PROMETHEUS_OPERATOR)["ServiceMonitor"]["spec"]
    service = render()["Service"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["honorLabels"] is True
    scraped = relabeled(endpoint, {"job": "trial-bitnet-operator"})
    assert scraped == {"job": "bitnet-operator"}


META = "__meta_kubernetes_pod_"


@pytest.mark.parametrize(
    ("labels", "port", "scraped"),
    [
        ({"training_kubeflow_org_replica_type": "master"}, PROGRESS_PORT, True),
        ({"training_kubeflow_org_replica_type": "worker"}, PROGRESS_PORT, False),
        ({"batch_kubernetes_io_job_completion_index": "0"}, PROGRESS_PORT, True),
        ({"batch_kubernetes_io_job_completion_index": "10"}, PROGRESS_PORT, False),
        ({"training_kubeflow_org_replica_type": "master"}, 23456, False),
    ],
    ids=["the Master", "a Worker", "index 0", "index 10", "another port"],
)
def test_of_the_pods_that_train_rank_0_is_scraped(labels: dict[str, str], port: int, scraped: bool) -> None:
    monitor = render(apis=PROMETHEUS_OPERATOR)["PodMonitor trainers"]["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    target = {f"{META}label_{name}": value for name, value in labels.items()}
    target |= {f"{META}label_bitnet_training_run": "mine", f"{META}container_port_number": str(port)}
    found = relabeled(endpoint, target)
    assert (found is not None) == scraped
    if found is not None:
        assert (found["name"], found["job"]) == ("mine", "bitnet-trainer")


def test_pods_are_found_by_the_labels_that_the_backends_go_by() -> None:
    found = render(apis=BOTH)
    monitor = found["PodMonitor trainers"]["spec"]
    assert monitor["selector"] == {"matchExpressions": [{"key": RUN_LABEL, "operator": "Exists"}]}
    assert monitor["namespaceSelector"] == {"any": True}
    chosen = {"bitnet-trainer": (pytorchjob, "Master"), "bitnet-trainer-job": (job, "index 0")}
    for name, (backend, _) in chosen.items():
        selector = found[f"ClusterPodMonitoring {name}"]["spec"]["selector"]
        assert selector["matchExpressions"] == [{"key": RUN_LABEL, "operator": "Exists"}]
        labels = selector["matchLabels"]
        assert backend.pod_rank({"metadata": {"labels": labels, "annotations": labels, "name": "a"}}) == 0
    watching = render('watchNamespaces=["a","b"]', apis=PROMETHEUS_OPERATOR)["PodMonitor trainers"]
    assert watching["spec"]["namespaceSelector"] == {"matchNames": ["a", "b"]}


def test_managed_prometheus_leaves_the_operators_labels_and_names_the_trainers_run() -> None:
    found = render(apis=MANAGED_PROMETHEUS)
    operator = found["ClusterPodMonitoring bitnet-operator"]["spec"]
    assert operator["targetLabels"] == {"metadata": []}
    ports = {port["name"] for port in container(found)["ports"]}
    assert operator["endpoints"][0]["port"] in ports
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert operator["selector"]["matchLabels"].items() <= labels.items()
    for name in ("bitnet-trainer", "bitnet-trainer-job"):
        trainer = found[f"ClusterPodMonitoring {name}"]["spec"]
        assert trainer["endpoints"][0]["port"] == PROGRESS_PORT
        assert trainer["targetLabels"] == {
            "metadata": ["namespace", "pod"],
            "fromPod": [{"from": RUN_LABEL, "to": "name"}],
        }


def test_a_service_monitor_that_is_asked_for_needs_its_service() -> None:
    assert "ServiceMonitor" not in render("metrics.service.enabled=false", apis=PROMETHEUS_OPERATOR)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render("metrics.service.enabled=false", "monitoring.serviceMonitor.enabled=true")
    assert "monitoring.serviceMonitor.enabled: it takes the Service" in refused.value.stderr
