"""Metrics for Prometheus: of every run, from its status so that they end with it, and of this replica."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bitnet_crds import BitNetRunStatus
from bitnet_crds.series import RUNS, series
from bitnet_crds.status import RunPhase, SegmentOutcome
from bitnet_operator.conditions import condition
from bitnet_operator.moments import parse_timestamp
from bitnet_operator.observation import Key
from bitnet_operator.segments import open_segment

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of buckets: a look takes milliseconds, or waits for half a minute for an answer."""

M = TypeVar("M")


@dataclass(frozen=True)
class Seen:
    """One run, as it was looked at last."""

    status: BitNetRunStatus
    spec: Mapping[str, Any]
    """As the API server has it, with all defaults; empty where it cannot be read."""
    gpus: int
    """GPUs that its pods hold."""


Values = Iterable[tuple[tuple[str, ...], float | None]]
"""Values of the labels after namespace and name, and the series' value; None where it has none."""


class RunMetrics(Collector):
    """Each run that exists, as it was looked at last."""

    def __init__(self) -> None:
        self._runs: dict[Key, Seen] = {}

    def saw(self, key: Key, status: BitNetRunStatus, spec: Mapping[str, Any], gpus: int = 0) -> None:
        """The run has this status and spec (as the API server has it), and its pods hold so many GPUs."""
        self._runs[key] = Seen(status, spec, gpus)

    def gone(self, key: Key) -> None:
        """The run does not exist any more."""
        self._runs.pop(key, None)

    def collect(self) -> Iterable[Metric]:
        """All series, for one scrape."""
        runs = list(self._runs.items())
        for each in RUNS:
            family = (CounterMetricFamily if each.type == "counter" else GaugeMetricFamily)(
                each.family, each.meaning, labels=each.labels
            )
            for key, seen in runs:
                for labels, value in _VALUES[each.name](seen):
                    if value is not None:
                        family.add_metric((*key, *labels), value)
            yield family


class ReplicaMetrics:
    """What this replica does: whether it leads, when it saw the cluster, and how its queue gets on."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._leader = _own(Gauge, "bitnet_operator_leader", registry)
        self._seen = _LastSeen()
        registry.register(self._seen)
        self._length = _own(Gauge, "bitnet_operator_queue_length", registry)
        self._reconciles = _own(Counter, "bitnet_operator_reconciles_total", registry)
        for outcome in ("done", "failed"):
            self._reconciles.labels(outcome)  # what begins at 0 has a rate from its first time on
        self._wait = _own(_histogram, "bitnet_operator_queue_wait_seconds", registry)
        self._took = _own(_histogram, "bitnet_operator_reconcile_seconds", registry)

    def leads(self, leads: bool) -> None:
        """Whether this replica leads."""
        self._leader.set(float(leads))

    def saw(self) -> None:
        """The cluster was seen just now."""
        self._seen.at = time.time()

    def measures(self, length: Callable[[], int]) -> None:
        """At each scrape `length` says how many runs wait."""
        self._length.set_function(length)

    def begun(self, late: float) -> None:
        """Work on a run begins, `late` seconds after it was due."""
        self._wait.observe(late)

    def ended(self, seconds: float, failed: bool) -> None:
        """It has ended after so many seconds."""
        self._took.observe(seconds)
        self._reconciles.labels("failed" if failed else "done").inc()


class _LastSeen(Collector):
    """When the cluster was last seen; no series before that."""

    at: float | None = None

    def collect(self) -> Iterable[Metric]:
        if self.at is not None:
            each = series("bitnet_operator_last_seen_timestamp_seconds")
            yield GaugeMetricFamily(each.name, each.meaning, value=self.at)


def _own(make: Callable[..., M], name: str, registry: CollectorRegistry) -> M:
    each = series(name)
    return make(each.name, each.meaning, each.labels, registry=registry)


def _histogram(name: str, text: str, labels: Iterable[str], registry: CollectorRegistry) -> Histogram:
    return Histogram(name, text, labels, buckets=SECONDS, registry=registry)


def _of_status(value: Callable[[BitNetRunStatus], float | None]) -> Callable[[Seen], Values]:
    return lambda seen: [((), value(seen.status))]


def _of_spec(value: Callable[[Mapping[str, Any]], float | None]) -> Callable[[Seen], Values]:
    return lambda seen: [((), value(seen.spec))]


def _when(moment: str | None) -> float | None:
    return None if moment is None else parse_timestamp(moment).timestamp()


def _segment_start(status: BitNetRunStatus) -> float | None:
    current = open_segment(status)
    return None if current is None else _when(current.started_at)


def _failure(seen: Seen) -> Values:
    status = seen.status
    why = condition(status.conditions, "Failed")
    if status.phase is RunPhase.FAILED and why is not None:
        yield (why.reason,), 1
    elif status.attempts:
        failed = (each for each in reversed(status.segments) if each.outcome is SegmentOutcome.FAILED)
        if (last := next(failed, None)) is not None and last.exit_reason is not None:
            yield (last.exit_reason,), 1


def _halvings(seen: Seen) -> Values:
    return (((phase,), times) for phase, times in seen.status.adjustments.halvings.items())


def _phase(seen: Seen) -> Values:
    return (((phase,), float(seen.status.phase is phase)) for phase in RunPhase)


def _training_phase(seen: Seen) -> Values:
    name = seen.status.training_phase
    return [] if name is None else [((name,), 1)]


def _conditions(seen: Seen) -> Values:
    return (((each.type, each.status), 1) for each in seen.status.conditions)


def _evaluated(measure: str) -> Callable[[Seen], Values]:
    """What was measured of each model when a run had ended."""

    def values(seen: Seen) -> Iterator[tuple[tuple[str, ...], float | None]]:
        for model in ("original", "before", "after", "teacher"):
            value = getattr(seen.status.evaluation, f"{measure}_{model}", None)
            yield (model,), None if value is None else float(value)

    return values


_VALUES: dict[str, Callable[[Seen], Values]] = {
    "bitnetrun_step": _of_status(lambda s: s.step),
    "bitnetrun_steps": _of_status(lambda s: s.total_steps),
    "bitnetrun_tokens": _of_status(lambda s: s.tokens),
    "bitnetrun_tokens_per_second": _of_status(lambda s: s.tokens_per_second),
    "bitnetrun_loss": _of_status(lambda s: None if s.loss is None else float(s.loss)),
    "bitnetrun_progress_timestamp_seconds": _of_status(lambda s: _when(s.progress_at)),
    "bitnetrun_checkpoint_step": _of_status(lambda s: s.checkpoint_step),
    "bitnetrun_checkpoint_every_steps": _of_spec(lambda spec: spec.get("checkpoint", {}).get("everySteps")),
    "bitnetrun_attempts": _of_status(lambda s: s.attempts),
    "bitnetrun_retries_limit": _of_spec(lambda spec: spec.get("retries")),
    "bitnetrun_failure": _failure,
    "bitnetrun_segments": _of_status(lambda s: len(s.segments)),
    "bitnetrun_segment_start_timestamp_seconds": _of_status(_segment_start),
    "bitnetrun_gpus": lambda seen: [((), seen.gpus)],
    "bitnetrun_rollbacks": _of_status(lambda s: len(s.adjustments.rollbacks)),
    "bitnetrun_halvings": _halvings,
    "bitnetrun_nonfinite_steps_total": _of_status(lambda s: s.skipped_steps),
    "bitnetrun_phase": _phase,
    "bitnetrun_training_phase": _training_phase,
    "bitnetrun_condition": _conditions,
    "bitnetrun_perplexity": _evaluated("perplexity"),
    "bitnetrun_accuracy": _evaluated("accuracy"),
}
"""By name, the values that one run has."""
