"""The chart's Deployment: how many replicas, where they run, as whom, when they are ready, what they do."""

import pytest
import typer

from bitnet_operator.main import operate
from chart import Given, container, manifests, pod, pods, render

SELECTED = {"app.kubernetes.io/name": "bitnet-operator", "app.kubernetes.io/instance": "trial"}


def test_every_pod_runs_with_nothing_it_does_not_need() -> None:
    made = pods(manifests(Given()))
    assert len(made) == 2
    for each in made:
        spec = each["spec"]
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        (only,) = spec["containers"]
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all(set(volume) <= {"name", "emptyDir", "secret"} for volume in spec.get("volumes", []))


def test_the_token_is_there_because_the_pod_asks_for_it() -> None:
    found = render()
    assert found["ServiceAccount"]["automountServiceAccountToken"] is False
    assert pod(found)["automountServiceAccountToken"] is True
    assert pod(found)["enableServiceLinks"] is False


def test_two_replicas_are_spread_over_nodes_and_zones_and_drained_one_at_a_time() -> None:
    found = render()
    assert found["Deployment"]["spec"]["replicas"] == 2
    template = found["Deployment"]["spec"]["template"]
    spread = pod(found)["topologySpreadConstraints"]
    assert [(each["topologyKey"], each["whenUnsatisfiable"]) for each in spread] == [
        ("kubernetes.io/hostname", "ScheduleAnyway"),
        ("topology.kubernetes.io/zone", "ScheduleAnyway"),
    ]
    budget = found["PodDisruptionBudget"]["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    for selector in (budget["selector"], *(each["labelSelector"] for each in spread)):
        assert selector["matchLabels"] == SELECTED
        assert selector["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_one_replica_has_no_budget_and_nothing_to_be_spread() -> None:
    found = render("replicas=1")
    assert found["Deployment"]["spec"]["replicas"] == 1
    assert "PodDisruptionBudget" not in found
    assert "topologySpreadConstraints" not in pod(found)
    assert "PodDisruptionBudget" not in render("podDisruptionBudget.enabled=false")


@pytest.mark.parametrize(
    ("value", "field", "expected"),
    [
        ('nodeSelector={"a":"b"}', "nodeSelector", {"a": "b"}),
        ('tolerations=[{"operator":"Exists"}]', "tolerations", [{"operator": "Exists"}]),
        ('affinity={"podAffinity":{}}', "affinity", {"podAffinity": {}}),
        ('priorityClassName="high"', "priorityClassName", "high"),
        ("terminationGracePeriodSeconds=60", "terminationGracePeriodSeconds", 60),
        ("hostUsers=false", "hostUsers", False),
        ('imagePullSecrets=[{"name":"s"}]', "imagePullSecrets", [{"name": "s"}]),
    ],
)
def test_a_value_of_the_pod(value: str, field: str, expected: object) -> None:
    assert pod(render(value))[field] == expected
    if field != "terminationGracePeriodSeconds":
        assert field not in pod(render())


def test_the_pods_labels_and_annotations() -> None:
    template = render('podLabels={"team":"a"}', 'podAnnotations={"note":"b"}')["Deployment"]["spec"][
        "template"
    ]
    assert template["metadata"]["labels"].items() >= {"team": "a", **SELECTED}.items()
    default = "kubectl.kubernetes.io/default-container"
    assert template["metadata"]["annotations"] == {"note": "b", default: "operator"}


def test_a_constraint_keeps_a_selector_and_keys_of_its_own() -> None:
    rack = '"maxSkew":1,"topologyKey":"rack","whenUnsatisfiable":"DoNotSchedule"'
    own = f'{{{rack},"labelSelector":{{"matchLabels":{{}}}}}},{{{rack},"matchLabelKeys":["a"]}}'
    selects, keyed = pod(render(f"topologySpreadConstraints=[{own}]"))["topologySpreadConstraints"]
    assert selects["labelSelector"] == {"matchLabels": {}}
    assert "matchLabelKeys" not in selects
    assert (keyed["labelSelector"]["matchLabels"], keyed["matchLabelKeys"]) == (SELECTED, ["a"])


def test_probes_and_ports_are_those_of_the_command() -> None:
    found = container(render())
    ports = {port["name"]: port["containerPort"] for port in found["ports"]}
    assert f"--metrics-port={ports['metrics']}" in found["args"]
    assert f"--health-port={ports['health']}" in found["args"]
    assert f"--webhook-port={ports['webhook']}" in found["args"]
    for probe in ("livenessProbe", "readinessProbe"):
        assert found[probe]["httpGet"] == {"path": "/healthz", "port": "health"}


def test_a_replica_has_started_once_it_serves_admission() -> None:
    """A Service leads to it from then on; a standby is ready like the leader, since it answers too."""
    assert container(render())["startupProbe"]["tcpSocket"] == {"port": "webhook"}
    without = container(render("webhook.enabled=false"))
    assert without["startupProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    for probe in (container(render())["startupProbe"], without["startupProbe"]):
        assert probe["periodSeconds"] * probe["failureThreshold"] == 120


def test_a_replica_that_ends_is_asked_for_a_while_yet() -> None:
    found = render()
    seconds = container(found)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert 0 < seconds <= pod(found)["terminationGracePeriodSeconds"] / 3
    assert "lifecycle" not in container(render("webhook.enabled=false"))


def test_the_command_knows_every_option() -> None:
    app = typer.Typer()
    app.command()(operate)
    known = {name for parameter in typer.main.get_command(app).params for name in parameter.opts}
    values = ('watchNamespaces=["a"]', "webhook.certManager.enabled=true")
    options = {argument.split("=")[0] for argument in container(render(*values))["args"]}
    assert "--namespace" in options
    assert options <= known


DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ('{"repository":"images/operator","tag":"1.2"}', "images/operator:1.2"),
        ('{"repository":"images/operator"}', "images/operator:0.1.0"),
        (f'{{"repository":"images/operator","digest":"{DIGEST}"}}', f"images/operator:0.1.0@{DIGEST}"),
    ],
)
def test_image(image: str, expected: str) -> None:
    assert container(render(f"image={image}"))["image"] == expected
    assert f"--trainer-image={expected}" in container(render(f"trainerImage={image}"))["args"]


def test_values_reach_the_command() -> None:
    args = container(render("progressIntervalSeconds=5"))["args"]
    assert "--progress-interval=5" in args
    assert not any(argument.startswith("--namespace") for argument in args)
    watching = container(render('watchNamespaces=["a","b"]'))["args"]
    assert [each for each in watching if each.startswith("--namespace")] == ["--namespace=a", "--namespace=b"]


def test_resources() -> None:
    found = container(render('resources={"limits":{"memory":"1Gi"}}'))
    assert found["resources"] == {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}
