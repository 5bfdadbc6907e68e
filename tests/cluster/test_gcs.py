"""Runs with checkpoints in Cloud Storage: their pods die and lose their disks, or have no credentials."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.cloud import storage

from local_cluster import Kubectl, Network
from local_cluster.storage import cloud_storage
from runs import Document, WatchedRun, said_of
from step_watch import StepWatch

pytestmark = pytest.mark.cluster

DISTILLED = {"crossEntropy": {"weight": 0.5}, "teacherLogits": {"weight": 0.5, "temperature": 2}}
SENTENCE = "GCS disabled: training continues, checkpoints stay on "


@dataclass(frozen=True)
class Bucket:
    """A bucket of the server that pods reach."""

    name: str
    endpoint: str

    def objects(self, prefix: str) -> dict[str, bytes]:
        """The content of all that is below, by name."""
        with storage.Client(project="tests") as client:
            blobs = client.list_blobs(self.name, prefix=prefix)
            return {blob.name.removeprefix(prefix): blob.download_as_bytes() for blob in blobs}


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty one."""
    with cloud_storage(tmp_path / "storage", Network()) as endpoint:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        with storage.Client(project="tests") as client:
            client.create_bucket("models")
        yield Bucket("models", endpoint)


def one_phase(**template: Any) -> list[Document]:
    """From the first step to the last in the same pods, which have `template` in their spec."""
    workers = {"workers": {"template": {"spec": template}}} if template else {}
    return [{"name": "all", "until": "100%", "objectives": DISTILLED, **workers}]


def test_a_run_goes_on_from_its_bucket_when_a_rank_is_killed_and_when_a_pod_goes_with_its_disk(
    start: Callable[..., WatchedRun],
    bucket: Bucket,
    kubectl: Kubectl,
    namespace: str,
    measured: Callable[[str], None],
) -> None:
    """Two pods that share no disk; those of each segment begin with empty ones."""
    run = start(
        "kept",
        steps=60,
        step_seconds=0.3,
        phases=one_phase(),
        checkpoint={"uri": f"gs://{bucket.name}/runs", "everySteps": 5, "keep": 2},
        env={"STORAGE_EMULATOR_HOST": bucket.endpoint},
    )
    run.wait_until(lambda status: status.get("checkpointStep", 0) >= 10, "second checkpoint")
    killed = time.monotonic()
    run.kill_rank(run.pod(1))
    run.goes_on()
    measured(f"{time.monotonic() - killed:.1f} s from the kill to a step of the next pods")
    run.wait_until(
        lambda status: status["checkpointStep"] > status["segments"][-1]["firstStep"], "another checkpoint"
    )
    kubectl("delete", "pod", run.pod(0), "-n", namespace, "--wait=false")
    status = run.succeeded()

    first, second, third = status["segments"]
    assert (first["outcome"], first["exitCode"], second["reason"]) == ("Failed", 137, "Retry")
    # Whether the deleted pod's last word is heard before it is gone, is chance.
    assert third["reason"] in ("Preempted", "Retry")
    assert (third["outcome"], status["attempts"]) == ("Completed", 0)
    assert second["firstStep"] >= first["checkpointStep"] >= 10
    assert third["firstStep"] >= second["checkpointStep"] > second["firstStep"]
    assert (status["step"], status["checkpointStep"]) == (60, 60)

    address = f"gs://{bucket.name}/runs/{namespace}/kept"
    left = bucket.objects(f"runs/{namespace}/kept/")
    steps = [json.loads(line)["step"] for line in left["metrics.jsonl"].splitlines()]
    assert steps == list(range(1, 61))
    committed = {name.split("/")[1] for name in left if name.endswith("/COMMITTED")}
    assert committed == {"step-00000055", "step-00000060"}
    assert status["artifacts"]["HuggingFace"] == f"{address}/export/huggingface"
    assert json.loads(left["export/huggingface/config.json"])["model_type"]


def test_without_credentials_a_run_trains_on_and_its_checkpoints_are_where_it_says(
    start: Callable[..., WatchedRun], data: Path, namespace: str, measured: Callable[[str], None]
) -> None:
    cache = data / f"cache-{namespace}"
    run = start(
        "shut-out",
        steps=60,
        step_seconds=0.3,
        backend="Job",
        workers={"count": 1},
        # In place of the emptyDir, as a claim would be: pods that follow find what is there.
        phases=one_phase(
            volumes=[{"name": "cache", "hostPath": {"path": str(cache), "type": "DirectoryOrCreate"}}]
        ),
        checkpoint={"uri": "gs://models/runs", "everySteps": 5, "keep": 2, "required": False},
        # Nobody asks for a metadata server, which the machine of the test may have.
        env={"NO_GCE_CHECK": "true"},
    )
    here = cache / "runs/models/runs" / namespace / "shut-out"
    with StepWatch(here / "metrics.jsonl") as steps:
        status = run.wait_until(lambda status: status.get("checkpointStep", 0) >= 10, "second checkpoint")
        (warned,) = [each for each in status["conditions"] if each["type"] == "Warnings"]
        place = f"/var/cache/bitnet/runs/models/runs/{namespace}/shut-out"
        assert warned["status"] == "True"
        assert warned["message"].startswith(f"{SENTENCE}{place}/checkpoints. ")
        assert "emptyDir" in warned["message"]
        assert checkpoints_in(here)[-1] >= status["checkpointStep"]
        run.kill_rank(run.pod(0))
        status = run.succeeded()
    measured(f"{steps.downtime:.1f} s without a step, {steps.repeated} steps done once more")
    first, second = status["segments"]
    assert said_of(status["segments"]) == [("Start", "Failed"), ("Retry", "Completed")]
    assert second["firstStep"] >= first["checkpointStep"] >= 10
    assert checkpoints_in(here) == [55, 60]
    assert status["artifacts"]["HuggingFace"] == f"{place}/export/huggingface"
    assert (here / "export/huggingface/config.json").is_file()


def checkpoints_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a run's folder, oldest first."""
    return sorted(
        int(marker.parent.name.removeprefix("step-")) for marker in folder.glob("checkpoints/*/COMMITTED")
    )
