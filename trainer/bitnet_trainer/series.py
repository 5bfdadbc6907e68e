"""The series of /metrics: a run's progress in Prometheus' terms, by the table of `bitnet_crds.series`."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bitnet_crds.protocol import Progress, TeacherState, TrainerState
from bitnet_crds.series import TRAINER

_PREFIX = "bitnet_trainer_"


class ProgressCollector(Collector):
    """Gives out a progress at each scrape. What is not known has no series, rather than a 0."""

    def __init__(self, progress: Callable[[], Progress], phases: Sequence[str]) -> None:
        """`phases` are the names of all that the run has."""
        self._progress, self._phases = progress, phases

    def collect(self) -> Iterable[Metric]:
        """All series, of one and the same progress."""
        progress = self._progress()
        plain, labelled = _plain(progress), _labelled(progress, self._phases)
        for each in TRAINER:
            name = each.name.removeprefix(_PREFIX)
            family = (CounterMetricFamily if each.type == "counter" else GaugeMetricFamily)(
                each.family, each.meaning, labels=each.labels
            )
            values = labelled[name] if each.labels else {"": plain[name]}
            for label, value in values.items():
                if value is not None:
                    family.add_metric([label] if each.labels else [], value)
            if family.samples:
                yield family


def _plain(progress: Progress) -> Mapping[str, float | None]:
    """Those without a label, by name."""
    machine, checkpoint = progress.machine, progress.checkpoint
    return {
        "step": progress.step,
        "steps": progress.total_steps,
        "tokens_total": progress.tokens,
        "loss": progress.loss,
        "gradient_norm": progress.gradient_norm,
        "quantization_lambda": progress.quantization_lambda,
        "largest_attention_logit": progress.largest_attention_logit,
        "clipped_heads": progress.clipped_heads,
        "skipped_steps_total": progress.skipped_steps,
        "loss_spikes_total": progress.loss_spikes,
        "tokens_per_second": progress.tokens_per_second,
        "step_seconds": machine.step_seconds,
        "model_flops_utilization_ratio": machine.model_flops_utilization,
        "device_memory_peak_bytes": machine.device_peak_bytes,
        "device_memory_reserved_bytes": machine.device_reserved_bytes,
        "host_memory_peak_bytes": machine.host_peak_bytes,
        "micro_batch_size": progress.micro_batch_size,
        "accumulation": progress.accumulation,
        "world_size": progress.world_size,
        "checkpoint_step": None if checkpoint is None else checkpoint.step,
        "checkpoint_timestamp_seconds": progress.checkpoint_at,
        "checkpoint_duration_seconds": progress.checkpoint_seconds,
        "checkpoint_failures_total": progress.checkpoint_failures,
    }


def _labelled(progress: Progress, phases: Sequence[str]) -> Mapping[str, Mapping[str, float | None]]:
    """Those with one label, by name and by the label's value."""
    parts = progress.objectives
    return {
        "objective_loss": {name: part.raw for name, part in parts.items()},
        "objective_weight": {name: part.weight for name, part in parts.items()},
        "objective_weighted_loss": {name: part.weighted for name, part in parts.items()},
        "learning_rate": {"AdamW": progress.learning_rate, "Muon": progress.muon_learning_rate},
        "mixture_share": progress.mixture,
        "state": _one_of(progress.state.value, map(str, TrainerState)),
        "phase": _one_of(progress.phase, phases),
        "teacher": _one_of(progress.teacher.value, map(str, TeacherState)),
    }


def _one_of(current: str, known: Iterable[str]) -> Mapping[str, float]:
    """1 for what holds, 0 for all else that may; one that nobody expected is there too."""
    return {each: float(each == current) for each in dict.fromkeys((*known, current))}
