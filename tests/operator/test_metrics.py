"""Metrics on runs: one series a run, gone with it."""

from prometheus_client import CollectorRegistry, generate_latest

from bitnet_crds.adjustments import Adjustments, Rollback
from bitnet_crds.status import BitNetRunStatus, RunPhase
from bitnet_operator.metrics import RunMetrics
from bitnet_operator.observation import Key

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
    metrics.saw(KEY, BitNetRunStatus())
    assert "bitnetrun_loss{" not in scrape(metrics)


def test_series_vanish_with_the_run() -> None:
    metrics = RunMetrics()
    metrics.saw(KEY, BitNetRunStatus(loss="1.0"))
    metrics.gone(KEY)
    assert 'name="small"' not in scrape(metrics)
