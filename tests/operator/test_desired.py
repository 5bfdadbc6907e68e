"""The manifests of a child job."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_crds import Order, Plan, parse_run, plan
from bitnet_operator.backends import pytorchjob
from bitnet_operator.desired import order_config_map, pod_template
from bitnet_operator.observation import JobState
from small_run import first_order
from written_runs import RIGHT, Changes, changed

FULL_RUN = Path(__file__).resolve().parents[2] / "examples/full-run.yaml"


def manifest(scene: Any) -> dict[str, Any]:
    ((_, child),) = pytorchjob.manifests(scene.run, first_order(scene.run), "trainer:1")
    return child


def container(job: dict[str, Any], replica: str = "Master") -> dict[str, Any]:
    spec = job["spec"]["pytorchReplicaSpecs"][replica]["template"]["spec"]
    return next(each for each in spec["containers"] if each["name"] == "pytorch")


def test_one_master_and_the_other_workers_none_of_which_is_restarted(scene) -> None:
    replicas = manifest(scene)["spec"]["pytorchReplicaSpecs"]
    assert {name: replica["replicas"] for name, replica in replicas.items()} == {"Master": 1, "Worker": 1}
    assert {replica["restartPolicy"] for replica in replicas.values()} == {"Never"}


def test_ended_pods_stay_to_be_read_and_running_ones_go(scene) -> None:
    """With a backoffLimit the training operator removes failed pods before anyone has read why."""
    assert manifest(scene)["spec"]["runPolicy"] == {"cleanPodPolicy": "Running"}


def test_a_run_of_one_worker_has_no_worker_replica(make_scene) -> None:
    scene = make_scene()
    scene.change(workers={"count": 1, "gpusPerWorker": 0, "microBatchSize": 4})
    job = manifest(scene)
    assert set(job["spec"]["pytorchReplicaSpecs"]) == {"Master"}


def test_gpus_are_asked_for_where_the_run_wants_them_and_not_else(scene) -> None:
    assert "limits" not in container(manifest(scene))["resources"]
    scene.change(workers={"count": 1, "gpusPerWorker": 4, "microBatchSize": 2})
    assert container(manifest(scene))["resources"]["limits"] == {"nvidia.com/gpu": 4}


def test_what_goes_to_a_bucket_is_kept_on_the_volume_for_caches_meanwhile(scene) -> None:
    order = json.loads(order_config_map(scene.run, first_order(scene.run))["data"]["order.json"])
    mounts = [mount["mountPath"] for mount in container(manifest(scene))["volumeMounts"]]
    assert any(order["scratch"].startswith(f"{mount}/") for mount in mounts)


def test_pods_hold_no_credentials_and_no_probe_that_waits_for_training(scene) -> None:
    job = manifest(scene)
    spec = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert "readinessProbe" not in container(job)


def test_no_service_of_the_namespace_sets_a_variable_of_the_trainers(scene) -> None:
    """Kubernetes would set BITNET_PORT where one is called `bitnet`."""
    spec = manifest(scene)["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert spec["enableServiceLinks"] is False


@pytest.mark.parametrize("changes", RIGHT.values(), ids=RIGHT)
def test_the_trainer_reads_the_very_order_that_the_operator_wrote(changes: Changes) -> None:
    """Whatever the run leaves out, such as a teacher."""
    run = parse_run(changed(yaml.safe_load(FULL_RUN.read_text()), changes))
    ledger = plan(run.spec)
    data = order_config_map(run, first_order(run))["data"]
    read = Order.model_validate_json(data["order.json"])
    assert (read.spec, read.plan) == (run.spec, ledger)
    assert read.training_hash == read.model_copy(update={"spec": run.spec, "plan": ledger}).training_hash
    assert Plan.model_validate_json(data["plan.json"]) == ledger


def test_what_is_fetched_needs_no_volume() -> None:
    """A hub's model and a bucket's are copied by the pod itself."""
    addresses = {
        "spec.model": {"preset": "BitNetLlama-1M", "tokenizer": "gs://models/tokenizer"},
        "spec.teacher.from": "gs://models/teacher.gguf",
    }
    run = parse_run(changed(yaml.safe_load(FULL_RUN.read_text()), addresses))
    spec = pod_template(run, first_order(run), "trainer:1")["spec"]
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in spec["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {"training-data", "checkpoints"}


def test_claims_of_tokenizer_and_teacher_are_mounted() -> None:
    addresses = {
        "spec.model": {"preset": "BitNetLlama-1M", "tokenizer": "pvc://words/tokenizer"},
        "spec.teacher": {"from": "pvc://tuned/teacher"},
    }
    run = parse_run(changed(yaml.safe_load(FULL_RUN.read_text()), addresses))
    (trainer,) = pod_template(run, first_order(run), "trainer:1")["spec"]["containers"]
    paths = {mount["mountPath"] for mount in trainer["volumeMounts"]}
    assert paths >= {"/mnt/pvc/words", "/mnt/pvc/tuned"}


def test_what_is_fetched_goes_to_a_volume_that_any_user_can_write(scene) -> None:
    """The home of a user that the image does not know is /, which only root may write to."""
    pod = pod_template(scene.run, first_order(scene.run), "image")["spec"]
    (container,) = pod["containers"]
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "cache")
    assert {"name": "cache", "emptyDir": {}} in pod["volumes"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    for name in ("HF_HOME", "BITNET_MODEL_CACHE", "BITNET_TEXT_CACHE"):
        assert environment[name].startswith(f"{mount['mountPath']}/")


def test_the_key_of_w_and_b_comes_from_a_secret_that_pods_start_without() -> None:
    document = yaml.safe_load(FULL_RUN.read_text())
    assert not any("WANDB" in entry["name"] for entry in _environment(document))
    for wandb, names in (({"project": "p"}, []), ({"project": "p", "secret": "keys"}, ["WANDB_API_KEY"])):
        entries = _environment(changed(document, {"spec.tracking": {"wandb": wandb}}))
        folders = ["WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"]
        assert [each["name"] for each in entries if "WANDB" in each["name"]] == folders + names
    assert entries[-1]["valueFrom"] == {
        "secretKeyRef": {"name": "keys", "key": "WANDB_API_KEY", "optional": True}
    }


def _environment(document: dict[str, Any]) -> list[dict[str, Any]]:
    run = parse_run(document)
    (trainer,) = pod_template(run, first_order(run), "trainer:1")["spec"]["containers"]
    environment: list[dict[str, Any]] = trainer["env"]
    return environment


def test_every_claim_that_the_run_names_is_mounted_once(scene) -> None:
    spec = scene.run.spec.model_copy(
        update={
            "model": scene.run.spec.model.model_copy(update={"from_": "pvc://models/a"}),
            "checkpoint": scene.run.spec.checkpoint.model_copy(update={"uri": "pvc://models/runs"}),
        }
    )
    scene.run = scene.run.model_copy(update={"spec": spec})
    mounts = [mount["mountPath"] for mount in container(manifest(scene))["volumeMounts"]]
    assert mounts.count("/mnt/pvc/models") == 1


def test_children_are_owned_by_the_run_and_found_by_its_label(scene) -> None:
    for child in (manifest(scene), order_config_map(scene.run, first_order(scene.run))):
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("BitNetRun", "small", "u-1")
        assert child["metadata"]["labels"]["bitnet.training/run"] == "small"


def test_the_order_in_the_config_map_is_the_run_itself(scene) -> None:
    data = order_config_map(scene.run, first_order(scene.run))["data"]
    order = Order.model_validate_json(data["order.json"])
    assert (order.spec, order.plan, order.job) == (scene.run.spec, scene.plan, "small-0")
    assert json.loads(data["plan.json"])["totalSteps"] == 10


def test_the_state_of_a_pytorchjob_is_its_last_word() -> None:
    def job(*conditions: tuple[str, str]) -> dict[str, Any]:
        return {
            "spec": {"runPolicy": {}},
            "status": {"conditions": [{"type": t, "status": s, "message": t} for t, s in conditions]},
        }

    assert pytorchjob.state(job()) == (JobState.ACTIVE, None)
    assert pytorchjob.state(job(("Created", "True"), ("Running", "True")))[0] is JobState.ACTIVE
    assert pytorchjob.state(job(("Running", "False"), ("Failed", "True"))) == (JobState.FAILED, "Failed")
    assert pytorchjob.state(job(("Running", "False"), ("Succeeded", "True")))[0] is JobState.SUCCEEDED


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(claim=st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,90}[a-z0-9])?", fullmatch=True))
def test_every_claim_has_a_volume_that_kubernetes_takes(make_scene: Any, claim: str) -> None:
    scene = make_scene()
    uri = f"pvc://{claim}/runs"
    checkpoint = scene.run.spec.checkpoint.model_copy(update={"uri": uri})
    scene.run = scene.run.model_copy(
        update={"spec": scene.run.spec.model_copy(update={"checkpoint": checkpoint})}
    )
    template = manifest(scene)["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    names = [volume["name"] for volume in template["volumes"]]
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in names)
    assert len(set(names)) == len(names)
    mounts = {mount["mountPath"]: mount["name"] for mount in container(manifest(scene))["volumeMounts"]}
    assert mounts[f"/mnt/pvc/{claim}"] in names


def test_a_template_cannot_take_away_the_labels_that_pods_are_found_by(scene) -> None:
    template = {"metadata": {"labels": {"bitnet.training/run": "other", "mine": "kept"}}}
    workers = scene.run.spec.workers.model_copy(update={"template": template})
    scene.run = scene.run.model_copy(update={"spec": scene.run.spec.model_copy(update={"workers": workers})})
    labels = manifest(scene)["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["metadata"]["labels"]
    assert (labels["bitnet.training/run"], labels["mine"]) == ("small", "kept")
