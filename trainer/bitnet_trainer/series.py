"""The series of /metrics: a run's progress in Prometheus' terms. docs/metrics.md lists them."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bitnet_crds.protocol import Progress, TeacherState, TrainerState

_PREFIX = "bitnet_trainer_"


class ProgressCollector(Collector):
    """Gives out a progress at each scrape. What is not known has no series, rather than a 0."""

    def __init__(self, progress: Callable[[], Progress], phases: Sequence[str]) -> None:
        """`phases` are the names of all that the run has."""
        self._progress, self._phases = progress, phases

    def collect(self) -> Iterable[Metric]:
        """All series, of one and the same progress."""
        progress = self._progress()
        for name, (text, value) in _gauges(progress).items():
            if value is not None:
                yield GaugeMetricFamily(_PREFIX + name, text, value=value)
        for name, text, total in (
            ("tokens", "Tokens trained on since the run began.", progress.tokens),
            ("skipped_steps", "Steps left out, their loss or gradient not finite.", progress.skipped_steps),
            ("loss_spikes", "Losses far above those before them, since the run began.", progress.loss_spikes),
            (
                "checkpoint_failures",
                "Checkpoints that could not be written, in this process.",
                progress.checkpoint_failures,
            ),
        ):
            yield CounterMetricFamily(_PREFIX + name, text, value=total)
        yield from _labelled(progress)
        for name, text, current, known in (
            ("state", "What the trainer is doing.", progress.state.value, list(TrainerState)),
            ("teacher", "Where the teacher stands.", progress.teacher.value, list(TeacherState)),
            ("phase", "The phase being trained.", progress.phase, self._phases),
        ):
            family = GaugeMetricFamily(_PREFIX + name, text, labels=[name])
            for each in dict.fromkeys((*map(str, known), current)):
                family.add_metric([each], float(each == current))
            yield family


def _gauges(progress: Progress) -> Mapping[str, tuple[str, float | None]]:
    """Those without a label, by name: help and value."""
    machine, checkpoint = progress.machine, progress.checkpoint
    return {
        "step": ("Optimiser steps completed.", progress.step),
        "steps": ("Optimiser steps of the whole run.", progress.total_steps),
        "loss": ("Total loss of the last finite step.", progress.loss),
        "gradient_norm": ("L2 norm of the gradient before clipping.", progress.gradient_norm),
        "quantization_lambda": ("Lambda: 0 not quantised, 1 fully.", progress.quantization_lambda),
        "largest_attention_logit": (
            "Largest attention logit of the last step, before its update.",
            progress.largest_attention_logit,
        ),
        "clipped_heads": ("Query heads clipped in the last step.", progress.clipped_heads),
        "tokens_per_second": ("Tokens trained on in a second, all ranks.", progress.tokens_per_second),
        "step_seconds": ("Time of a step, a mean over the last few.", machine.step_seconds),
        "model_flops_utilization_ratio": (
            "Share of the GPUs' dense bfloat16 peak.",
            machine.model_flops_utilization,
        ),
        "device_memory_peak_bytes": (
            "Largest GPU memory in tensors, since rank 0 began or tried what fits.",
            machine.device_peak_bytes,
        ),
        "device_memory_reserved_bytes": ("GPU memory that rank 0 holds.", machine.device_reserved_bytes),
        "host_memory_peak_bytes": ("Largest resident memory of rank 0.", machine.host_peak_bytes),
        "micro_batch_size": ("Sequences in one pass of one process.", progress.micro_batch_size),
        "accumulation": ("Passes in one optimiser step.", progress.accumulation),
        "world_size": ("Processes.", progress.world_size),
        "checkpoint_step": (
            "Steps in the newest committed checkpoint.",
            None if checkpoint is None else checkpoint.step,
        ),
        "checkpoint_timestamp_seconds": (
            "When this process last committed a checkpoint, since 1970.",
            progress.checkpoint_at,
        ),
        "checkpoint_duration_seconds": (
            "What that checkpoint took, from the copy of the state to the commit.",
            progress.checkpoint_seconds,
        ),
    }


def _labelled(progress: Progress) -> Iterable[Metric]:
    """Gauges with one label, whose values are known as long as a run goes on."""
    parts = progress.objectives
    for name, text, label, values in (
        (
            "learning_rate",
            "Learning rate of the last step.",
            "optimizer",
            {"AdamW": progress.learning_rate, "Muon": progress.muon_learning_rate},
        ),
        (
            "objective_loss",
            "One objective's loss.",
            "objective",
            {each: part.raw for each, part in parts.items()},
        ),
        (
            "objective_weight",
            "One objective's weight.",
            "objective",
            {each: part.weight for each, part in parts.items()},
        ),
        (
            "objective_weighted_loss",
            "One objective's part of the total loss.",
            "objective",
            {each: part.weighted for each, part in parts.items()},
        ),
        ("mixture_share", "Share of the sequences from one source.", "source", progress.mixture),
    ):
        family = GaugeMetricFamily(_PREFIX + name, text, labels=[label])
        for each, value in values.items():
            if value is not None:
                family.add_metric([each], value)
        yield family
