"""Series of /metrics: those of the table and no other, and they hold what progress does."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from bitnet_crds import parse_run, plan
from bitnet_crds.adjustments import Adjustments
from bitnet_crds.protocol import (
    Checkpoint,
    Evaluation,
    MachineProgress,
    ObjectiveProgress,
    Progress,
    TeacherState,
)
from bitnet_crds.series import ALL, UNIX_TIME
from bitnet_crds.status import BitNetRunStatus, Condition, SegmentOutcome
from bitnet_operator.metrics import ReplicaMetrics, RunMetrics
from bitnet_operator.observation import Key
from bitnet_operator.segments import next_segment
from bitnet_trainer.report import Reporter
from small_run import START, small_document

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


def test_the_collectors_give_out_the_series_of_the_table_with_its_types_and_labels():
    registry = CollectorRegistry()
    registry.register(_runs())
    ReplicaMetrics(registry).saw()
    families = [
        family
        for text in (Reporter(FULL, ["main"]).metrics().decode(), generate_latest(registry).decode())
        for family in text_string_to_metric_families(text)
        if family.name.startswith("bitnet") and not family.name.endswith("_created")
    ]
    given = {
        (
            f"{family.name}{'_total' if family.type == 'counter' else ''}",
            family.type,
            frozenset(label for sample in family.samples for label in sample.labels) - {"le"},
        )
        for family in families
    }
    assert given == {(each.name, each.type, frozenset(each.labels)) for each in ALL}


def test_the_page_lists_the_series_of_the_table():
    listed = re.findall(r"^\| `(bitnet\w+)` \| (\w+) \| ([^|]*?) ?\|", LIST.read_text(), re.M)
    assert {(name, kind, labels.replace("`", "").strip()) for name, kind, labels in listed} == {
        (each.name, each.type, ", ".join(each.labels)) for each in ALL
    }


def test_names_follow_prometheus_conventions_for_types_and_units():
    for each in ALL:
        assert each.name.endswith("_total") == (each.type == "counter"), each
        assert each.name.endswith("_timestamp_seconds") == (each.unit == UNIX_TIME), each
        assert each.name.endswith("_bytes") == (each.unit == "bytes"), each
        if each.unit == "seconds":
            assert each.name.endswith("_seconds"), each


def _runs() -> RunMetrics:
    """A run of which everything is known."""
    condition = Condition(
        type="Running", status="True", reason="x", message="", observed_generation=1, last_transition_time=""
    )
    run = parse_run(small_document())
    segment = next_segment(run, plan(run.spec), BitNetRunStatus(), START)
    failed = segment.model_copy(update={"outcome": SegmentOutcome.FAILED, "exit_reason": "Crashed"})
    status = BitNetRunStatus(
        total_steps=10,
        loss="2.5",
        progress_at="2026-01-01T00:00:00Z",
        tokens_per_second=3,
        checkpoint_step=2,
        attempts=1,
        training_phase="main",
        segments=(failed, segment),
        conditions=(condition,),
        adjustments=Adjustments(halvings={"main": 1}),
        evaluation=Evaluation(tokens=10, perplexity_after="7.5", accuracy_after="0.5"),
    )
    metrics = RunMetrics()
    metrics.saw(Key("team", "small"), status, small_document()["spec"])
    return metrics


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
