"""Metrics of every run for Prometheus, read from statuses, so that a series ends with its run."""

from collections.abc import Callable, Iterable

from prometheus_client import Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bitnet_crds import BitNetRunStatus
from bitnet_crds.status import RunPhase
from bitnet_operator.observation import Key

LEADER = Gauge("bitnet_operator_leader", "1 while this replica leads, 0 while it stands by")

_LABELS = ("namespace", "name")


class RunMetrics(Collector):
    """The latest status of each run that exists."""

    def __init__(self) -> None:
        self._statuses: dict[Key, BitNetRunStatus] = {}

    def saw(self, key: Key, status: BitNetRunStatus) -> None:
        """The run has this status."""
        self._statuses[key] = status

    def gone(self, key: Key) -> None:
        """The run does not exist any more."""
        self._statuses.pop(key, None)

    def collect(self) -> Iterable[Metric]:
        """All series, for one scrape."""
        statuses = list(self._statuses.items())
        yield _gauge(
            "loss",
            "Total loss of the last step",
            statuses,
            lambda s: None if s.loss is None else float(s.loss),
        )
        yield _gauge("step", "Optimiser steps completed", statuses, lambda s: s.step)
        yield _gauge("steps", "Optimiser steps in the whole run", statuses, lambda s: s.total_steps)
        yield _gauge("tokens", "Tokens trained", statuses, lambda s: s.tokens)
        yield _gauge(
            "tokens_per_second", "Tokens trained in a second, now", statuses, lambda s: s.tokens_per_second
        )
        yield _gauge(
            "checkpoint_step", "Steps in the newest checkpoint", statuses, lambda s: s.checkpoint_step
        )
        yield _gauge("attempts", "Failed segments that count", statuses, lambda s: s.attempts)
        yield _gauge("segments", "Segments begun", statuses, lambda s: len(s.segments))
        yield _gauge(
            "rollbacks",
            "Times it went back to before a fault",
            statuses,
            lambda s: len(s.adjustments.rollbacks),
        )
        halvings = GaugeMetricFamily(
            "bitnetrun_halvings",
            "Times a phase's micro batch was halved because memory ran out",
            labels=(*_LABELS, "phase"),
        )
        skipped = CounterMetricFamily(
            "bitnetrun_nonfinite_steps",
            "Steps left out because loss or gradient was not finite",
            labels=_LABELS,
        )
        phase = GaugeMetricFamily(
            "bitnetrun_phase", "1 for the phase of its life that the run is in", labels=(*_LABELS, "phase")
        )
        training = GaugeMetricFamily(
            "bitnetrun_training_phase",
            "1 for the phase of spec.phases that is trained",
            labels=(*_LABELS, "phase"),
        )
        condition = GaugeMetricFamily(
            "bitnetrun_condition",
            "1 for the status that a condition of the run has",
            labels=(*_LABELS, "type", "status"),
        )
        for key, status in statuses:
            skipped.add_metric(key, status.skipped_steps)
            for name, times in status.adjustments.halvings.items():
                halvings.add_metric((*key, name), times)
            for life in RunPhase:
                phase.add_metric((*key, life), float(status.phase is life))
            if status.training_phase is not None:
                training.add_metric((*key, status.training_phase), 1)
            for each in status.conditions:
                condition.add_metric((*key, each.type, each.status), 1)
        yield from (skipped, halvings, phase, training, condition)
        yield _evaluated("perplexity", "Perplexity on held-out text at the end", statuses)
        yield _evaluated("accuracy", "Share of right labels on held-out rows at the end", statuses)


def _gauge(
    name: str,
    text: str,
    statuses: Iterable[tuple[Key, BitNetRunStatus]],
    value: Callable[[BitNetRunStatus], float | None],
) -> Metric:
    """One gauge over all runs, less those that have no value yet."""
    family = GaugeMetricFamily(f"bitnetrun_{name}", text, labels=_LABELS)
    for key, status in statuses:
        if (number := value(status)) is not None:
            family.add_metric(key, number)
    return family


def _evaluated(measure: str, text: str, statuses: Iterable[tuple[Key, BitNetRunStatus]]) -> Metric:
    """What was measured of each model when a run had ended."""
    family = GaugeMetricFamily(f"bitnetrun_{measure}", text, labels=(*_LABELS, "model"))
    for key, status in statuses:
        for model in ("original", "before", "after", "teacher"):
            value = getattr(status.evaluation, f"{measure}_{model}", None)
            if value is not None:
                family.add_metric((*key, model), float(value))
    return family
