"""Series of /metrics: each of it is in docs/metrics.md, and holds what progress does."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bitnet_crds.protocol import Checkpoint, MachineProgress, ObjectiveProgress, Progress, TeacherState
from bitnet_operator.metrics import RunMetrics
from bitnet_trainer.report import Reporter

LIST = Path(__file__).parents[2] / "docs" / "metrics.md"
FULL = Progress(
    step=3,
    total_steps=10,
    phase="main",
    loss=2.5,
    objectives={"crossEntropy": ObjectiveProgress(raw=5.0, weight=0.5, weighted=2.5)},
    mixture={"web": 0.75},
    tokens=384,
    tokens_per_second=100.0,
    learning_rate=1e-3,
    muon_learning_rate=5e-3,
    quantization_lambda=0.5,
    gradient_norm=1.5,
    largest_attention_logit=12.5,
    clipped_heads=4,
    skipped_steps=2,
    loss_spikes=1,
    teacher=TeacherState.READY,
    checkpoint=Checkpoint(step=2, uri="file:///runs"),
    checkpoint_at=1e9,
    checkpoint_seconds=7.5,
    machine=MachineProgress(
        step_seconds=1.28,
        model_flops_utilization=0.41,
        device_peak_bytes=7 << 30,
        device_reserved_bytes=8 << 30,
        host_peak_bytes=1 << 30,
    ),
)


def samples(progress: Progress) -> dict[str, float]:
    text = Reporter(progress, ["warmup", "main"]).metrics().decode()
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_series_is_in_the_list_with_its_labels_and_nothing_else_is():
    families = [
        family
        for text in (Reporter(FULL, ["main"]).metrics().decode(), _operators())
        for family in text_string_to_metric_families(text)
        if family.name.startswith("bitnet")
    ]
    given = {
        f"{family.name}{'_total' if family.type == 'counter' else ''}": ", ".join(sorted(labels))
        for family in families
        for labels in [{label for sample in family.samples for label in sample.labels}]
    }
    listed = dict(re.findall(r"^\| `(bitnet\w+)` \| ([^|]*?) ?\|", LIST.read_text(), re.M))
    assert {name: labels.replace("`", "").strip() for name, labels in listed.items()} == given


def _operators() -> str:
    from prometheus_client import CollectorRegistry, generate_latest

    from bitnet_crds.adjustments import Adjustments
    from bitnet_crds.protocol import Evaluation
    from bitnet_crds.status import BitNetRunStatus, Condition
    from bitnet_operator.observation import Key

    metrics, registry = RunMetrics(), CollectorRegistry()
    registry.register(metrics)
    condition = Condition(
        type="Running", status="True", reason="x", message="", observed_generation=1, last_transition_time=""
    )
    status = BitNetRunStatus(
        total_steps=10,
        loss="2.5",
        tokens_per_second=3,
        checkpoint_step=2,
        training_phase="main",
        conditions=(condition,),
        adjustments=Adjustments(halvings={"main": 1}),
        evaluation=Evaluation(tokens=10, perplexity_after="7.5", accuracy_after="0.5"),
    )
    metrics.saw(Key("team", "small"), status)
    return generate_latest(registry).decode()


def test_values_are_those_of_the_progress():
    found = samples(FULL)
    for name, value in {
        "learning_rate{AdamW}": 1e-3,
        "learning_rate{Muon}": 5e-3,
        "objective_weighted_loss{crossEntropy}": 2.5,
        "mixture_share{web}": 0.75,
        "largest_attention_logit": 12.5,
        "clipped_heads": 4,
        "step_seconds": 1.28,
        "model_flops_utilization_ratio": 0.41,
        "device_memory_peak_bytes": 7 << 30,
        "checkpoint_duration_seconds": 7.5,
        "tokens_total": 384,
        "phase{warmup}": 0,
        "phase{main}": 1,
        "teacher{Ready}": 1,
        "teacher{Absent}": 0,
        "state{Starting}": 1,
        "state{Training}": 0,
    }.items():
        assert found[f"bitnet_trainer_{name}"] == pytest.approx(value), name
    assert found["process_resident_memory_bytes"] > 50_000_000


def test_a_set_of_states_has_exactly_one_that_holds():
    found = samples(FULL.model_copy(update={"phase": "of another spec"}))
    for name in ("state", "teacher", "phase"):
        assert sum(value for key, value in found.items() if key.startswith(f"bitnet_trainer_{name}{{")) == 1


def test_what_is_not_known_has_no_series():
    found = samples(Progress(total_steps=10, phase="main"))
    for name in ("loss", "learning_rate{Muon}", "model_flops_utilization_ratio", "largest_attention_logit"):
        assert f"bitnet_trainer_{name}" not in found
