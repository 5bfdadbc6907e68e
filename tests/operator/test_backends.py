"""The children of each backend: what holds for all of them, and what each has of its own."""

from collections.abc import Callable
from typing import Any, get_args

import pytest

from bitnet_crds import Order, parse_run
from bitnet_crds.machines import BackendName
from bitnet_operator.backends import job, pytorchjob
from bitnet_operator.backends.backend import Backend
from bitnet_operator.backends.kinds import BACKENDS, backend_of
from bitnet_operator.desired import order_config_map
from bitnet_operator.observation import Job, JobState, Pod
from bitnet_operator.policies.failure import first_cause
from bitnet_trainer.__main__ import find_place
from small_run import first_order

Manifest = dict[str, Any]
each_backend = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)


def children(scene: Any, backend: Backend, **shape: int) -> list[Manifest]:
    made = backend.manifests(scene.run, order_in(scene, **shape), "trainer:1")
    return [manifest for _, manifest in made]


def order_in(scene: Any, **shape: int) -> Order:
    """The first order, its first phase in another shape."""
    first, *others = scene.plan.phases
    changed = first.model_copy(update={"shape": first.shape.model_copy(update=shape)})
    return first_order(scene.run, scene.plan.model_copy(update={"phases": (changed, *others)}))


def templates(child: Manifest) -> list[Manifest]:
    """The pod templates of a job, by rank."""
    if child["kind"] == "Job":
        return [child["spec"]["template"]]
    return [replica["template"] for replica in child["spec"]["pytorchReplicaSpecs"].values()]


def trainer(template: Manifest) -> Manifest:
    (container,) = template["spec"]["containers"]
    return dict(container)


def with_workers(scene: Any, **changes: Any) -> None:
    workers = scene.run.spec.workers.model_copy(update=changes)
    scene.run = scene.run.model_copy(update={"spec": scene.run.spec.model_copy(update={"workers": workers})})


def test_every_backend_of_the_spec_is_there_and_found_by_its_name(document: Manifest) -> None:
    assert set(BACKENDS) == set(get_args(BackendName))
    assert backend_of(document) is pytorchjob
    for name, backend in BACKENDS.items():
        document["spec"]["workers"]["backend"] = name
        assert backend_of(document) is backend
    # The operator must find the children of a run that is wrong, too.
    assert backend_of({"spec": {"workers": {"backend": "TrainJob"}}}) is pytorchjob


@each_backend
def test_each_child_is_named_as_the_job_owned_by_the_run_and_found_by_its_label(
    scene: Any, backend: Backend
) -> None:
    made = backend.manifests(scene.run, first_order(scene.run), "trainer:1")
    assert [kind for kind, _ in made] == [*backend.BESIDE, backend.RESOURCE]
    for kind, child in made:
        assert child["apiVersion"] == "/".join(filter(None, [kind.group, kind.version]))
        assert child["metadata"]["name"] == "small-0"
        assert child["metadata"]["labels"]["bitnet.training/run"] == "small"
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("BitNetRun", "u-1", True)


@each_backend
def test_pods_are_never_restarted_and_run_the_trainer(scene: Any, backend: Backend) -> None:
    child = children(scene, backend)[-1]
    policies = {replica["restartPolicy"] for replica in child["spec"].get("pytorchReplicaSpecs", {}).values()}
    for template in templates(child):
        assert policies | {template["spec"].get("restartPolicy", "Never")} == {"Never"}
        assert trainer(template)["image"] == "trainer:1"
        assert template["metadata"]["labels"]["bitnet.training/run"] == "small"


@each_backend
def test_labels_of_a_queue_go_on_to_the_job_and_to_nothing_else(document: Manifest, backend: Backend) -> None:
    queue = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "high"}
    document["metadata"]["labels"] = {**queue, "team": "a"}
    run = parse_run(document)
    *beside, child = backend.manifests(run, first_order(run), "trainer:1")
    assert queue.items() <= child[1]["metadata"]["labels"].items()
    assert "team" not in child[1]["metadata"]["labels"]
    others = [manifest["metadata"] for _, manifest in beside]
    others += [template["metadata"] for template in templates(child[1])]
    others += [order_config_map(run, first_order(run))["metadata"]]
    assert not any(queue.keys() & metadata["labels"].keys() for metadata in others)


@each_backend
def test_whether_a_job_may_have_pods_is_the_queues_to_say(scene: Any, backend: Backend) -> None:
    child = children(scene, backend)[-1]
    assert "suspend" not in {**child["spec"], **child["spec"].get("runPolicy", {})}
    assert backend.state(child) == (JobState.ACTIVE, None)
    child["spec"].setdefault("runPolicy", {})["suspend"] = child["spec"]["suspend"] = True
    assert backend.state(child) == (JobState.SUSPENDED, None)
    child["spec"]["runPolicy"]["suspend"] = child["spec"]["suspend"] = False
    child["status"] = {"conditions": [{"type": "Suspended", "status": "True", "message": "no quota"}]}
    assert backend.state(child) == (JobState.SUSPENDED, "no quota")


@each_backend
def test_a_missing_kind_is_named_with_the_mend(backend: Backend) -> None:
    assert "the cluster has no" in backend.MISSING
    assert "backend: Job" in pytorchjob.MISSING
    assert "pytorchjobs.kubeflow.org" in pytorchjob.MISSING


@pytest.mark.parametrize("index", [0, 1])
def test_the_trainer_finds_its_place_in_a_job(scene: Any, index: int) -> None:
    """The launcher reads what the pods' environment says; the index is the Job controller's word."""
    child = children(scene, job)[-1]
    environment = {}
    for entry in trainer(templates(child)[0])["env"]:
        if "value" in entry:
            environment[entry["name"]] = entry["value"]
        elif entry["name"] == "PET_NODE_RANK":
            path = entry["valueFrom"]["fieldRef"]["fieldPath"]
            assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
            environment["PET_NODE_RANK"] = str(index)
    order = Order.model_validate_json(
        order_config_map(scene.run, first_order(scene.run))["data"]["order.json"]
    )
    place = find_place(order, environment)
    assert (place.nodes, place.node_rank, place.processes) == (2, index, 1)
    service, _ = children(scene, job)
    assert place.master_address == f"small-0-0.{service['metadata']['name']}"
    assert place.master_port == service["spec"]["ports"][0]["port"]


def test_a_template_cannot_send_the_ranks_elsewhere(scene: Any) -> None:
    env = [{"name": "PET_MASTER_ADDR", "value": "elsewhere"}, {"name": "PET_NODE_RANK", "value": "5"}]
    spec = {"restartPolicy": "Always", "subdomain": "x", "containers": [{"name": "pytorch", "env": env}]}
    with_workers(scene, template={"spec": spec})
    (template,) = templates(children(scene, job)[-1])
    environment = {entry["name"]: entry for entry in trainer(template)["env"]}
    assert environment["PET_MASTER_ADDR"]["value"] == "small-0-0.small-0"
    assert "value" not in environment["PET_NODE_RANK"]
    assert (template["spec"]["restartPolicy"], template["spec"]["subdomain"]) == ("Never", "small-0")


def test_the_service_leads_to_pods_that_are_not_ready(scene: Any) -> None:
    service, child = children(scene, job)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    (template,) = templates(child)
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()


def test_a_job_has_an_index_a_worker_fails_with_the_first_and_succeeds_with_rank_0(scene: Any) -> None:
    spec = children(scene, job, workers=3, processes_per_worker=2)[-1]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert spec["backoffLimit"] == 0
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    environment = {entry["name"]: entry.get("value") for entry in trainer(spec["template"])["env"]}
    assert (environment["PET_NNODES"], environment["PET_NPROC_PER_NODE"]) == ("3", "2")


def test_names_of_pods_fit_in_63_characters(document: Manifest) -> None:
    document["metadata"]["name"] = "r" * 40
    assert len(f"{parse_run(document).metadata.name}-9999-4095-abcde") <= 63


@pytest.fixture
def said() -> Callable[..., Manifest]:
    """A job about which its controller says this, such as `said(("Failed", "why"))`."""

    def a_job(*conditions: tuple[str, str], **spec: Any) -> Manifest:
        return {
            "metadata": {"name": "small-0"},
            "spec": {"runPolicy": {}, **spec},
            "status": {
                "conditions": [{"type": type_, "status": "True", "message": why} for type_, why in conditions]
            },
        }

    return a_job


def test_the_state_of_a_job_is_its_last_word(said: Callable[..., Manifest]) -> None:
    assert job.state(said()) == (JobState.ACTIVE, None)
    assert job.state(said(("FailureTarget", "a pod failed"))) == (JobState.ACTIVE, None)
    assert job.state(said(("FailureTarget", "a pod failed"), ("Failed", "a pod failed"))) == (
        JobState.FAILED,
        "a pod failed",
    )
    assert job.state(said(("SuccessCriteriaMet", ""), ("Complete", "done"))) == (JobState.SUCCEEDED, "done")
    # Held by a queue and removed by its user: what has ended is not held.
    assert job.state(said(("Suspended", ""), ("Failed", "late"), suspend=True))[0] is JobState.FAILED


def test_a_pod_that_kubernetes_stopped_is_known_when_it_is_gone(said: Callable[..., Manifest]) -> None:
    why = "Pod team/small-0-1-x7k2p has condition DisruptionTarget matching FailJob rule at index 0"
    (lost,) = job.lost_pods(said(("Failed", why)))
    assert (lost.name, lost.rank) == ("small-0-1-x7k2p", 1)
    failure = first_cause(
        Job("small-0", JobState.FAILED, why, (lost, Pod("small-0-0-aaaaa", 0, exit_code=1)))
    )
    assert failure.preempted
    assert "small-0-1-x7k2p" in failure.message


def test_a_pod_that_failed_is_known_by_its_exit_code(said: Callable[..., Manifest]) -> None:
    why = (
        "Container pytorch for pod team/small-0-1-x7k2p failed with exit code 137 matching FailJob rule at "
        "index 1"
    )
    (lost,) = job.lost_pods(said(("Failed", why)))
    assert (lost.name, lost.rank, lost.exit_code) == ("small-0-1-x7k2p", 1, 137)
    assert job.lost_pods(said(("Failed", "Job was active longer than specified deadline"))) == ()
    assert job.lost_pods(said()) == ()


def test_a_pod_that_was_asked_to_end_fails_no_job_by_a_rule_and_is_known_all_the_same(
    scene: Any, said: Callable[..., Manifest]
) -> None:
    """By a rule of exit codes a Job would fail whose pods a queue takes: they end with 143."""
    rules = children(scene, job)[-1]["spec"]["podFailurePolicy"]["rules"]
    assert [rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule] == [[0, 143]]
    over = said(("Failed", "Job has reached the specified backoff limit"), completions=2)
    over["status"]["conditions"][0]["reason"] = "BackoffLimitExceeded"
    (asked,) = job.lost_pods(over)
    lonely = Pod("small-0-0-aaaaa", 0, exit_code=200)
    assert first_cause(Job("small-0", JobState.FAILED, pods=(lonely, asked))).preempted
    crashed = Pod("small-0-1-bbbbb", 1, exit_code=1)
    assert not first_cause(Job("small-0", JobState.FAILED, pods=(lonely, crashed, asked))).preempted


def test_a_pods_index_is_its_rank() -> None:
    annotations = {"batch.kubernetes.io/job-completion-index": "7"}
    assert job.pod_rank({"metadata": {"annotations": annotations}}) == 7
