"""The contract as a real API server holds it: what it takes, what it refuses, and in which words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from local_cluster import CommandFailed, Kubectl
from written_runs import RIGHT, changed
from wrong_runs import WRONG, Wrong

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("definition")]

Document = dict[str, Any]
NAME = "bitnetruns.bitnet.training"


@pytest.fixture(scope="session")
def full_run(checkout: Path) -> Document:
    """examples/full-run.yaml, parsed."""
    document: Document = yaml.safe_load((checkout / "examples/full-run.yaml").read_text())
    return document


@pytest.fixture
def refusal(kubectl: Kubectl, full_run: Document) -> Callable[[Mapping[str, Any]], str]:
    """What the server answers to the full run with values changed (`...` removes one), or `""`."""

    def apply(changes: Mapping[str, Any]) -> str:
        document = changed(full_run, {"metadata.name": "refused-or-not", **changes})
        try:
            kubectl("create", "--dry-run=server", "--filename", "-", stdin=json.dumps(document))
        except CommandFailed as error:
            return error.stderr
        return ""

    return apply


def test_the_definition_is_established_and_structural(kubectl: Kubectl) -> None:
    conditions = kubectl.get("crd", NAME)["status"]["conditions"]
    standing = {condition["type"]: condition["status"] for condition in conditions}
    assert standing["Established"] == "True"
    assert standing.get("NonStructuralSchema", "False") == "False"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.seed", 1),
        ("spec.budget.tokens", 10_000_000_000),
        ("spec.budget.tokens", "1.5Gi"),
        ("spec.budget.tokens", "1e10"),
        ("spec.health", None),
        ("spec.workers.template", {"spec": {"nodeSelector": {"any": "thing"}}}),
        ("spec.model", {"from": "pvc://models/qwen/model.gguf"}),
        ("spec.data.mixture", None),
    ],
)
def test_a_right_value_is_taken(refusal: Callable[..., str], path: str, value: Any) -> None:
    assert refusal({path: value}) == ""


@pytest.mark.parametrize("changes", RIGHT.values(), ids=RIGHT)
def test_a_right_run_is_taken(refusal: Callable[..., str], changes: Mapping[str, Any]) -> None:
    assert refusal(changes) == ""


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_parts_that_disagree_are_refused_with_field_and_mend(
    refusal: Callable[..., str], wrong: Wrong
) -> None:
    answer = refusal(wrong.changes)
    assert wrong.server_field in answer
    assert wrong.server_words in answer
    # A wrong type leaves rules unchecked, and the server adds a line that says so.
    named = [line for line in answer.splitlines() if "Invalid value" in line and "<nil>" not in line]
    assert len(named) <= 1, answer


@pytest.mark.parametrize(
    ("path", "value", "field", "mend"),
    [
        ("metadata.name", "3b", "", "in metadata.name, a letter first and no hyphen last"),
        ("metadata.name", "q" * 41, "", "write at most 40 lower-case letters"),
        ("spec.budget", ..., "spec.budget", "Required value"),
        ("spec.budget.token", 5, "spec.budget.token", "unknown field"),
        (
            "spec.phases.0.objectives.maskedDifusion",
            {},
            "spec.phases[0].objectives.maskedDifusion",
            "unknown field",
        ),
        (
            "spec.budget.tokens",
            "10X",
            "spec.budget.tokens",
            "write a whole number such as 5000000, 500M, 10G or 1Ki",
        ),
        ("spec.budget.tokens", "2E", "spec.budget.tokens", "more than 1E tokens: write fewer"),
        ("spec.budget.tokens", "500k", "spec.budget.tokens", "write at least 524288"),
        ("spec.model.from", "s3://a/b", "spec.model.from", "write hf://organisation/name"),
        ("spec.model", {"from": "file:///m", "revision": "main"}, "spec.model.revision", "remove it"),
        ("spec.data.sources.1.name", "web", "spec.data.sources", "give each source a name of its own"),
        ("spec.data.heldOut", "0%", "spec.data.heldOut", "write more than 0%"),
        ("spec.phases.0.until", "0.1", "spec.phases[0].until", "not a percentage: write one such as 90%"),
        ("spec.phases.0.until", "90%", "spec.phases", "order the phases by `until`"),
        ("spec.phases.0.until", "0%", "spec.phases", "the first later than 0%"),
        ("spec.phases.2.until", "99.5%", "spec.phases", "distill, ends at 99.5%: write `until: 100%` there"),
        ("spec.phases.1.name", "warmup", "spec.phases", "give each phase a name of its own"),
        ("spec.phases.0.objectives", {}, "spec.phases[0].objectives", "name one with a weight"),
        ("spec.teacher", ..., "spec", "add spec.teacher, or set that weight to 0"),
        ("spec.phases.2.objectives.teacherLogits.weight", 0, "spec.teacher", "or remove spec.teacher"),
        (
            "spec.budget.globalBatchSize",
            1000,
            "spec.budget.globalBatchSize",
            "1000 sequences cannot be split over 2 workers x 1 processes x micro batch 32: "
            "write a multiple of 64",
        ),
        ("spec.teacher.tune", {"tokens": "500k"}, "spec.teacher.tune.tokens", "has less than one step"),
        ("spec.teacher.tune", {"tokens": "2E"}, "spec.teacher.tune.tokens", "or more than 1E tokens"),
        ("spec.teacher.batchSizeFactor", 0.3, "spec.teacher.batchSizeFactor", "choose a factor"),
        ("spec.teacher.batchSizeFactor", 0.75, "spec.budget.globalBatchSize", "write a multiple of 48"),
    ],
)
def test_a_wrong_value_is_refused_with_field_and_mend(
    refusal: Callable[..., str], path: str, value: Any, field: str, mend: str
) -> None:
    answer = refusal({path: value})
    assert field in answer
    assert mend in answer
    # Any more of them would be noise about one mistake.
    assert answer.count("Invalid value") <= 2, answer


def test_processes_share_a_step_evenly_whatever_fits_their_memory(refusal: Callable[..., str]) -> None:
    workers = {"count": 3, "microBatchSize": "Auto"}
    answer = refusal({"spec.workers": workers, "spec.teacher.batchSizeFactor": ...})
    assert "spec.budget.globalBatchSize" in answer
    assert "write a multiple of 3" in answer


def test_what_makes_a_run_cannot_change_and_the_rest_can(
    kubectl: Kubectl, full_run: Document, namespace: str
) -> None:
    kubectl("create", "--namespace", namespace, "--filename", "-", stdin=json.dumps(full_run))
    name = full_run["metadata"]["name"]

    def patch(spec: Document) -> None:
        kubectl(
            "patch", "bnr", name, "--namespace", namespace, "--type=merge", "-p", json.dumps({"spec": spec})
        )

    for field, change in {
        "spec.model": {"model": {"from": "hf://a/b"}},
        "spec.budget": {"budget": {"tokens": "11G"}},
        "spec.data": {"data": {"sources": full_run["spec"]["data"]["sources"][::-1]}},
        "spec.teacher": {"teacher": None},
        "spec.quantization": {"quantization": {"lambdaWarmup": None}},
        "spec.classification": {"classification": {"labels": ["bad", "good"]}},
        "spec.export": {"export": {"formats": ["HuggingFace", "Packed"]}},
    }.items():
        with pytest.raises(CommandFailed) as refused:
            patch(change)
        assert f"{field}: " in refused.value.stderr
        assert "cannot change once it exists: make a new run" in refused.value.stderr
    patch({"retries": 9})
    patch({"checkpoint": {"onDelete": "Remove"}})
    patch({"workers": {"parallelism": "FSDP", "microBatchSize": 16, "count": 4}})
    patch({"workers": {"template": {"spec": {"nodeSelector": {"any": "thing"}}}}})


def test_explain_reads_well(kubectl: Kubectl) -> None:
    phases = " ".join(kubectl("explain", "bnr.spec.phases").split())
    assert "objectives <Object> -required- What is minimised in a phase: the sum of weight * loss." in phases
    objectives = " ".join(kubectl("explain", "bnr.spec.phases.objectives").split())
    assert "teacherLogits <Object> Distillation: T^2 * KL(teacher || student)" in objectives
    for name in ("maskedDiffusion", "attentionRelations", "blockAttention", "hiddenStates", "classification"):
        assert f"{name} <Object> " in objectives
    mixture = " ".join(kubectl("explain", "bnr.spec.phases.mixture").split())
    assert "FIELD: mixture <map[string]number>" in mixture


def test_the_list_shows_how_runs_stand(kubectl: Kubectl, full_run: Document, namespace: str) -> None:
    kubectl("create", "--namespace", namespace, "--filename", "-", stdin=json.dumps(full_run))
    status = {"phase": "Running", "step": 7, "totalSteps": 19073, "loss": "3.21", "tokensPerSecond": 900}
    status |= {"segment": "0 Start", "trainingPhase": "warmup", "attempts": 0, "checkpointStep": 4}
    patch = json.dumps({"status": status})
    name = full_run["metadata"]["name"]
    kubectl("patch", "bnr", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)
    header, row = kubectl("get", "bnr", "-n", namespace, "-o", "wide").splitlines()
    assert header.split()[:7] == ["NAME", "PHASE", "STEP", "TOTAL", "LOSS", "TOKENS/S", "SEGMENT"]
    assert row.split()[:10] == [name, "Running", "7", "19073", "3.21", "900", "0", "Start", "warmup", "0"]
