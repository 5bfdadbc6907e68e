"""Metrics on runs, gone with them, and on the replica itself."""

import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from bitnet_crds import Condition, Segment, parse_run, plan
from bitnet_crds.adjustments import Adjustments, Rollback
from bitnet_crds.status import BitNetRunStatus, RunPhase, SegmentOutcome
from bitnet_operator.metrics import ReplicaMetrics, RunMetrics
from bitnet_operator.observation import Key
from bitnet_operator.segments import next_segment
from small_run import START, small_document

KEY = Key("team", "small")


def scrape(metrics: RunMetrics) -> str:
    registry = CollectorRegistry()
    registry.register(metrics)
    return generate_latest(registry).decode()


def test_a_run_has_its_series_labelled_by_namespace_and_name() -> None:
    metrics = RunMetrics()
    metrics.saw(
        KEY,
        BitNetRunStatus(
            phase=RunPhase.RUNNING,
            training_phase="distill",
            step=7,
            total_steps=10,
            loss="2.5000",
            tokens_per_second=130,
            skipped_steps=3,
            adjustments=Adjustments(
                halvings={"distill": 2},
                rollbacks=(Rollback(checkpoint_step=4, first_batch=5, batches=1, learning_rate_factor=0.5),),
            ),
        ),
        {},
    )
    text = scrape(metrics)
    for line in (
        'bitnetrun_loss{name="small",namespace="team"} 2.5',
        'bitnetrun_step{name="small",namespace="team"} 7.0',
        'bitnetrun_steps{name="small",namespace="team"} 10.0',
        'bitnetrun_tokens_per_second{name="small",namespace="team"} 130.0',
        'bitnetrun_nonfinite_steps_total{name="small",namespace="team"} 3.0',
        'bitnetrun_rollbacks{name="small",namespace="team"} 1.0',
        'bitnetrun_halvings{name="small",namespace="team",phase="distill"} 2.0',
        'bitnetrun_phase{name="small",namespace="team",phase="Running"} 1.0',
        'bitnetrun_phase{name="small",namespace="team",phase="Failed"} 0.0',
        'bitnetrun_training_phase{name="small",namespace="team",phase="distill"} 1.0',
    ):
        assert line in text


def test_what_is_not_known_yet_has_no_series() -> None:
    metrics = RunMetrics()
    metrics.saw(KEY, BitNetRunStatus(), {})
    assert "bitnetrun_loss{" not in scrape(metrics)


def test_series_vanish_with_the_run() -> None:
    metrics = RunMetrics()
    metrics.saw(KEY, BitNetRunStatus(loss="1.0"), {})
    metrics.gone(KEY)
    assert 'name="small"' not in scrape(metrics)


def segment(index: int, **ended: Any) -> Segment:
    run = parse_run(small_document())
    first = next_segment(run, plan(run.spec), BitNetRunStatus(), START)
    return first.model_copy(update={"index": index, **ended})


FAILED = {"outcome": SegmentOutcome.FAILED, "exit_reason": "TeacherUnavailable"}


def test_what_the_spec_allows_and_what_its_pods_hold_stand_beside_what_was_done() -> None:
    metrics, status = (
        RunMetrics(),
        BitNetRunStatus(segments=(segment(0),), progress_at="2026-01-01T00:00:30Z"),
    )
    metrics.saw(KEY, status, small_document(retries=5)["spec"], gpus=16)
    text = scrape(metrics)
    began = START.timestamp()
    for line in (
        'bitnetrun_retries_limit{name="small",namespace="team"} 5.0',
        'bitnetrun_checkpoint_every_steps{name="small",namespace="team"} 2.0',
        'bitnetrun_gpus{name="small",namespace="team"} 16.0',
        f'bitnetrun_segment_start_timestamp_seconds{{name="small",namespace="team"}} {began!r}',
        f'bitnetrun_progress_timestamp_seconds{{name="small",namespace="team"}} {began + 30!r}',
    ):
        assert _same(line, text), line


def _same(line: str, text: str) -> bool:
    """Whether the series has the value; large ones are written with an exponent."""
    name, _, value = line.rpartition(" ")
    found = [each.rpartition(" ")[2] for each in text.splitlines() if each.startswith(f"{name} ")]
    return [float(each) for each in found] == [float(value)]


def test_a_run_without_pods_holds_0_gpus_and_has_no_limits_while_its_spec_cannot_be_read() -> None:
    metrics = RunMetrics()
    metrics.saw(KEY, BitNetRunStatus(segments=(segment(0, outcome=SegmentOutcome.COMPLETED),)), {})
    text = scrape(metrics)
    assert 'bitnetrun_gpus{name="small",namespace="team"} 0.0' in text
    for name in ("retries_limit", "checkpoint_every_steps", "segment_start_timestamp_seconds"):
        assert f"bitnetrun_{name}{{" not in text


@pytest.mark.parametrize(
    ("status", "reasons"),
    [
        (BitNetRunStatus(attempts=1, segments=(segment(0, **FAILED), segment(1))), ["TeacherUnavailable"]),
        # A checkpoint was committed since, so it counts no more.
        (BitNetRunStatus(attempts=0, segments=(segment(0, **FAILED), segment(1))), []),
        (
            BitNetRunStatus(
                phase=RunPhase.FAILED,
                conditions=(
                    Condition(
                        type="Failed",
                        status="True",
                        reason="InvalidSpec",
                        message="",
                        observed_generation=1,
                        last_transition_time="",
                    ),
                ),
            ),
            ["InvalidSpec"],
        ),
    ],
    ids=["counts", "counts no more", "the run"],
)
def test_why_it_failed_is_told_while_that_counts(status: BitNetRunStatus, reasons: list[str]) -> None:
    metrics = RunMetrics()
    metrics.saw(KEY, status, {})
    lines = [line for line in scrape(metrics).splitlines() if line.startswith("bitnetrun_failure{")]
    assert lines == [
        f'bitnetrun_failure{{name="small",namespace="team",reason="{reason}"}} 1.0' for reason in reasons
    ]


def test_a_replica_tells_of_itself_what_it_knows() -> None:
    registry = CollectorRegistry()
    own = ReplicaMetrics(registry)
    text = generate_latest(registry).decode()
    assert "bitnet_operator_leader 0.0" in text
    assert 'bitnet_operator_reconciles_total{outcome="failed"} 0.0' in text
    assert "\nbitnet_operator_last_seen_timestamp_seconds" not in text
    own.leads(True)
    own.measures(lambda: 3)
    own.begun(late=0.2)
    own.ended(seconds=7.0, failed=True)
    own.saw()
    text = generate_latest(registry).decode()
    for line in (
        "bitnet_operator_leader 1.0",
        "bitnet_operator_queue_length 3.0",
        'bitnet_operator_queue_wait_seconds_bucket{le="0.25"} 1.0',
        'bitnet_operator_reconcile_seconds_bucket{le="5.0"} 0.0',
        'bitnet_operator_reconcile_seconds_bucket{le="10.0"} 1.0',
        'bitnet_operator_reconciles_total{outcome="failed"} 1.0',
        'bitnet_operator_reconciles_total{outcome="done"} 0.0',
    ):
        assert line in text
    value = registry.get_sample_value("bitnet_operator_last_seen_timestamp_seconds")
    assert value == pytest.approx(time.time(), abs=60)
