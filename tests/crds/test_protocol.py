"""What a pod says: its last word always fits, comes back whole, and exit codes have names."""

import json
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds import BitNetRun, Checkpoint, ExitCode, Order, Progress, TerminationReport, parse_run, plan
from bitnet_crds.protocol import TERMINATION_MESSAGE_LIMIT, Evaluation, exit_code_label
from written_runs import RIGHT, changed

CHECKPOINT = Checkpoint(step=400, uri="file:///runs/default/qwen3-06b/checkpoints/400")
EVALUATION = Evaluation(
    tokens=4096, perplexity_original="35.8", perplexity_before="9e7", perplexity_after="98.1"
)


def report(message: str) -> TerminationReport:
    """A report with everything in it."""
    return TerminationReport(
        exit_code=7,
        reason="NonFinite",
        message=message,
        rank=1,
        step=412,
        checkpoint=CHECKPOINT,
        evaluation=EVALUATION,
        artifacts={"HuggingFace": "/runs/default/qwen3-06b/export"},
    )


@given(st.text(), st.integers(0, 2000))
def test_a_report_fits_whatever_its_message(text: str, times: int) -> None:
    sent = report(text * times).to_message()
    assert len(sent.encode()) <= TERMINATION_MESSAGE_LIMIT
    received = TerminationReport.model_validate_json(sent)
    assert received.model_copy(update={"message": ""}) == report("")
    assert received.message == text * times or "…" in received.message


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    """A sentence says what was wrong at its beginning, and a traceback at its end."""
    sent = TerminationReport.model_validate_json(report("first " + "é" * 9000 + " last").to_message())
    assert sent.message.startswith("first ")
    assert sent.message.endswith(" last")


@pytest.mark.parametrize("character", ["a", "é", "漢", "🧊", "\x00", '"', "\\", "\n"])
def test_a_long_message_fills_most_of_the_room(character: str) -> None:
    sent = report(character * 10_000).to_message()
    assert TERMINATION_MESSAGE_LIMIT * 0.85 < len(sent.encode()) <= TERMINATION_MESSAGE_LIMIT


def test_a_report_fits_when_other_fields_are_long() -> None:
    long = report("x").model_copy(update={"artifacts": {"HuggingFace": "/deep" * 2000}})
    sent = TerminationReport.model_validate_json(long.to_message())
    assert len(long.to_message().encode()) <= TERMINATION_MESSAGE_LIMIT
    assert (sent.exit_code, sent.checkpoint) == (7, CHECKPOINT)


def test_a_report_can_hold_a_file_name_that_is_not_utf8() -> None:
    name = b"/data/\xff.txt".decode(errors="surrogateescape")
    assert json.loads(report(f"cannot read {name}").to_message())["message"] == "cannot read /data/?.txt"


def test_a_report_of_a_newer_version_is_read() -> None:
    sent = json.loads(report("x").to_message()) | {"aLaterField": 1}
    assert TerminationReport.model_validate_json(json.dumps(sent)) == report("x")


def test_progress_of_a_newer_version_is_read() -> None:
    """Pods whose words could not be read would be ended as if they did not answer."""
    words = {"totalSteps": 9, "step": 3, "phase": "main", "state": "Calibrating", "teacher": "Halved", "x": 1}
    progress = Progress.model_validate_json(json.dumps(words))
    assert (progress.step, progress.state, progress.teacher) == (3, "Starting", "Absent")


@pytest.mark.parametrize(
    ("code", "label"),
    [
        (0, "Succeeded"),
        (1, "Crashed"),
        (2, "BadInput"),
        (4, "TeacherUnavailable"),
        (7, "NonFinite"),
        (137, "Killed"),
        (201, "OutOfMemory"),
        (143, "Preempted"),
        (134, "Signal6"),
        (42, "Exit42"),
        (200, "PeerLost"),
        (255, "Exit255"),
        (-signal.SIGTERM, "Preempted"),
        (-signal.SIGSEGV, "Signal11"),
    ],
)
def test_every_exit_code_has_a_name(code: int, label: str) -> None:
    assert exit_code_label(code) == label


def test_a_teacher_that_fails_to_load_ends_the_segment_for_good() -> None:
    """Trap 7: it has an exit code of its own, and a second try of the same would end the same."""
    assert ExitCode.TEACHER_UNAVAILABLE not in (ExitCode.SUCCEEDED, ExitCode.CRASHED)
    assert not ExitCode.TEACHER_UNAVAILABLE.retryable


def test_what_may_succeed_when_tried_again() -> None:
    assert {code for code in ExitCode if code.retryable} == {
        ExitCode.CRASHED,
        ExitCode.KILLED,
        ExitCode.OUT_OF_MEMORY,
        ExitCode.PREEMPTED,
        ExitCode.PEER_LOST,
    }


def test_an_order_comes_back_whole(run: BitNetRun) -> None:
    """The trainer reads the very ledger that the operator wrote."""
    order = Order(namespace="ml", name="qwen3-06b", job="qwen3-06b-0", spec=run.spec, plan=plan(run.spec))
    received = Order.model_validate_json(order.model_dump_json(by_alias=True))
    assert received == order
    assert plan(received.spec) == received.plan
    assert str(received.folder) == "/mnt/pvc/checkpoints/runs/ml/qwen3-06b"


def test_a_run_in_a_bucket_works_in_a_folder_that_stands_for_its_address(run: BitNetRun) -> None:
    kept = run.spec.checkpoint.model_copy(update={"uri": "gs://bucket/some/runs/"})
    spec = run.spec.model_copy(update={"checkpoint": kept})
    order = Order(namespace="ml", name="a", job="a-0", spec=spec, plan=plan(spec), scratch="/scratch")
    assert str(order.folder) == "/scratch/bucket/some/runs/ml/a"
    assert order.address == "gs://bucket/some/runs/ml/a"


def test_a_classifiers_evaluation_speaks_of_accuracy_alone() -> None:
    """And one of a language model says nothing of accuracy, however new the reader."""
    classifier = Evaluation(examples=1000, accuracy_before="0.5", accuracy_after="0.912")
    assert classifier.model_dump(by_alias=True, exclude_none=True) == {
        "examples": 1000,
        "accuracyBefore": "0.5",
        "accuracyAfter": "0.912",
    }
    assert set(EVALUATION.model_dump(exclude_none=True)) == {
        "tokens",
        "perplexity_original",
        "perplexity_before",
        "perplexity_after",
    }


DECISIVE: dict[str, Any] = {
    "spec.model.revision": "v2",
    "spec.quantization.subLN": "AllProjections",
    "spec.quantization.lambdaWarmup.steps": 7,
    "spec.data.sources.0.weight": 5,
    "spec.data.mixture": {"policy": "Influence", "smoothing": 0.2},
    "spec.phases.1.mixture": {"web": 1},
    "spec.phases.2.transition": {"steps": 9, "curve": "Cosine"},
    "spec.phases.2.transition.curve": "Cosine",
    "spec.phases.2.objectives.teacherLogits.topK": 7,
    "spec.phases.2.objectives.teacherLogits.tail": "Renormalized",
    "spec.phases.2.objectives.teacherLogits.temperature": 1.5,
    "spec.phases.2.objectives.teacherLogits.weighting": "GradientRatio",
    "spec.phases.2.objectives.crossEntropy.weight": 0.25,
    "spec.data.sequenceLength": 256,
    "spec.budget.tokens": "11G",
    "spec.schedule.decayFraction": 0.1,
    "spec.schedule.decayCurve": "OneMinusSqrt",
    "spec.schedule.finalShare": 0.1,
    "spec.schedule": {"name": "Cosine", "warmupSteps": 1000},
    "spec.optimizer.gradientClipping": 2,
    "spec.optimizer.name": "MuonClip",
    "spec.averaging": {"decay": 0.99},
    "spec.teacher.precision": "Int8",
    "spec.teacher.revision": "v2",
    "spec.optimizer.weightDecay": 0.1,
    "spec.seed": 1,
}
IRRELEVANT: dict[str, Any] = {
    "spec.teacher.cacheLogits": True,
    "spec.teacher.batchSizeFactor": 1,
    "spec.checkpoint.inferenceWeights": True,
    "spec.checkpoint.everySteps": 7,
    "spec.checkpoint.onDelete": "Remove",
    "spec.workers.count": 4,
    "spec.workers.parallelism": "FSDP",
    "spec.retries": 1,
    "spec.tracking": {"wandb": {"project": "bitnet"}},
    "spec.export.formats": [],
    "spec.data.heldOut": "3%",
    "spec.data.corruptShare": "1%",
    "spec.data.documents": "Separate",
    "spec.budget.tokens": 10_000_000_001,
    "spec.phases.0.until": "10.0%",
    "spec.health.nonFinite.skipSteps": 1,
    "spec.workers.template": {"spec": {}},
}
"""heldOut, corruptShare and documents are in the text's own fingerprint, as the sources are; one token more
makes no step more."""

MORE_DECISIVE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{
        key: (RIGHT["MuonClip in its own words"], {f"spec.optimizer.{key}": value})
        for key, value in {"muonLearningRate": 0.01, "clippingThreshold": 11, "clippingAlpha": 0.1}.items()
    },
    "a classifier": (RIGHT["a classifier"], {"spec.classification": {"labels": ["good", "bad"]}}),
    "a preset": (RIGHT["a preset"], {"spec.model.preset": "BitNetLlama-135M"}),
    "its tokenizer": (RIGHT["a preset"], {"spec.model.tokenizer": "gs://models/other"}),
    "a correction": (
        RIGHT["a correction, not exported"],
        {"spec.quantization.lowRankCorrection.init": "Kaiming"},
    ),
    "influence": (RIGHT["influence"], {"spec.data.mixture.target": "web"}),
    "masking": (
        RIGHT["masked distillation, cached"],
        {"spec.phases.2.objectives.maskedDiffusion.maskToken": "<mask>"},
    ),
    "how likely": (
        RIGHT["masked distillation, cached"],
        {"spec.phases.2.objectives.maskedDiffusion.maskProbability": 0.25},
    ),
    "layers": (
        RIGHT["weights found by measuring"],
        {"spec.phases.2.objectives.hiddenStates.layerWeights": [1, 1]},
    ),
    "blocks": (RIGHT["weights found by measuring"], {"spec.phases.2.objectives.blockAttention.layer": 3}),
}
"""A right run and one change of it."""


def hash_of(document: dict[str, Any]) -> str:
    spec = parse_run(document).spec
    return Order(namespace="ml", name="a", job="a-0", spec=spec, plan=plan(spec)).training_hash


@pytest.mark.parametrize(("path", "value"), DECISIVE.items())
def test_what_decides_a_step_is_in_the_training_hash(full_run: dict[str, Any], path: str, value: Any) -> None:
    assert hash_of(changed(full_run, {path: value})) != hash_of(full_run)


@pytest.mark.parametrize(("path", "value"), IRRELEVANT.items())
def test_what_decides_no_step_is_not_in_the_training_hash(
    full_run: dict[str, Any], path: str, value: Any
) -> None:
    assert hash_of(changed(full_run, {path: value})) == hash_of(full_run)


@pytest.mark.parametrize(("right", "change"), MORE_DECISIVE.values(), ids=MORE_DECISIVE)
def test_what_decides_a_step_of_other_runs_is_in_the_training_hash(
    full_run: dict[str, Any], right: dict[str, Any], change: dict[str, Any]
) -> None:
    before = changed(full_run, right)
    assert hash_of(changed(before, change)) != hash_of(before)
