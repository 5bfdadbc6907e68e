"""Series: all that /metrics of operator and trainer hold, for their collectors and docs/metrics.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Series:
    """One series, or one for each set of values of its labels."""

    name: str
    """As it is scraped, a counter's with `_total`; of a histogram without `_bucket`, `_sum` and `_count`."""
    meaning: str
    """Its help, and its row in docs/metrics.md."""
    unit: str = ""
    """Of its value; empty where that is 0 or 1. Times of day are `Unix time`, in seconds since 1970."""
    labels: tuple[str, ...] = ()
    type: Literal["gauge", "counter", "histogram"] = "gauge"

    @property
    def family(self) -> str:
        """The name as collectors are given it: a counter's without `_total`."""
        return self.name.removesuffix("_total") if self.type == "counter" else self.name


UNIX_TIME = "Unix time"
_OF_A_RUN = ("namespace", "name")

TRAINER = (
    Series("bitnet_trainer_step", "optimiser steps completed", "steps"),
    Series("bitnet_trainer_steps", "optimiser steps of the whole run", "steps"),
    Series("bitnet_trainer_tokens_total", "tokens trained on since the run began", "tokens", type="counter"),
    Series(
        "bitnet_trainer_loss",
        "total loss of the last step that was finite, in nats where all objectives are",
        "nats",
    ),
    Series("bitnet_trainer_objective_loss", "mean loss of one objective, unweighted", "nats", ("objective",)),
    Series("bitnet_trainer_objective_weight", "its weight in that step", "ratio", ("objective",)),
    Series(
        "bitnet_trainer_objective_weighted_loss",
        "the product: its part of the total",
        "nats",
        ("objective",),
    ),
    Series("bitnet_trainer_gradient_norm", "L2 norm of the whole gradient, before clipping", "norm"),
    Series(
        "bitnet_trainer_learning_rate",
        "rate of the last step, of AdamW, and of Muon with MuonClip",
        "rate",
        ("optimizer",),
    ),
    Series("bitnet_trainer_quantization_lambda", "0 not quantised, 1 fully", "ratio"),
    Series(
        "bitnet_trainer_largest_attention_logit",
        "S_max of QK-clip: over all heads, before the step's update; MuonClip",
        "logit",
    ),
    Series(
        "bitnet_trainer_clipped_heads", "query heads over the threshold in the last step; MuonClip", "heads"
    ),
    Series(
        "bitnet_trainer_skipped_steps_total",
        "steps left out because loss or gradient was not finite",
        "steps",
        type="counter",
    ),
    Series(
        "bitnet_trainer_loss_spikes_total",
        "losses more than 6 robust standard deviations over the phase's last ones",
        "steps",
        type="counter",
    ),
    Series("bitnet_trainer_mixture_share", "share of the sequences from a source", "ratio", ("source",)),
    Series(
        "bitnet_trainer_tokens_per_second",
        "tokens trained on in a second by all ranks, a mean over ten steps",
        "tokens/s",
    ),
    Series("bitnet_trainer_step_seconds", "time of a step, the same mean", "seconds"),
    Series(
        "bitnet_trainer_model_flops_utilization_ratio",
        "share of the GPUs' dense bfloat16 peak that the student's arithmetic took, `6 N + 12 L W T` a token "
        "(arXiv 2204.02311); H100 SXM, H200, A100 and L4",
        "ratio",
    ),
    Series(
        "bitnet_trainer_device_memory_peak_bytes",
        "largest GPU memory in tensors since the process began, or last tried what fits "
        "(`microBatchSize: Auto`)",
        "bytes",
    ),
    Series("bitnet_trainer_device_memory_reserved_bytes", "GPU memory that the process holds", "bytes"),
    Series("bitnet_trainer_host_memory_peak_bytes", "largest resident memory of the process", "bytes"),
    Series("bitnet_trainer_micro_batch_size", "sequences in one pass of one rank", "sequences"),
    Series("bitnet_trainer_accumulation", "passes in one optimiser step", "passes"),
    Series("bitnet_trainer_world_size", "ranks", "ranks"),
    Series("bitnet_trainer_checkpoint_step", "steps in the newest committed checkpoint", "steps"),
    Series("bitnet_trainer_checkpoint_timestamp_seconds", "when this process last committed one", UNIX_TIME),
    Series(
        "bitnet_trainer_checkpoint_duration_seconds",
        "what that took, from the copy of the state to the commit; training goes on meanwhile",
        "seconds",
    ),
    Series(
        "bitnet_trainer_checkpoint_failures_total",
        "checkpoints that could not be written, in this process",
        "checkpoints",
        type="counter",
    ),
    Series(
        "bitnet_trainer_state",
        "1 for what the trainer is doing, 0 for each other state",
        labels=("state",),
    ),
    Series(
        "bitnet_trainer_phase",
        "1 for the phase being trained, 0 for the others of the spec",
        labels=("phase",),
    ),
    Series(
        "bitnet_trainer_teacher",
        "1 for where the teacher stands: Absent, Loading or Ready",
        labels=("teacher",),
    ),
)
"""Of a run, by its first rank."""

RUNS = (
    Series("bitnetrun_step", "optimiser steps completed", "steps", _OF_A_RUN),
    Series("bitnetrun_steps", "optimiser steps of the whole run", "steps", _OF_A_RUN),
    Series("bitnetrun_tokens", "tokens trained", "tokens", _OF_A_RUN),
    Series(
        "bitnetrun_tokens_per_second",
        "tokens trained in a second, while it trains",
        "tokens/s",
        _OF_A_RUN,
    ),
    Series("bitnetrun_loss", "total loss of the last step", "nats", _OF_A_RUN),
    Series(
        "bitnetrun_progress_timestamp_seconds",
        "when the trainer's progress in the status was read",
        UNIX_TIME,
        _OF_A_RUN,
    ),
    Series("bitnetrun_checkpoint_step", "steps in the newest checkpoint", "steps", _OF_A_RUN),
    Series("bitnetrun_checkpoint_every_steps", "`checkpoint.everySteps` of its spec", "steps", _OF_A_RUN),
    Series(
        "bitnetrun_attempts",
        "failed segments that count against `retries`",
        "segments",
        _OF_A_RUN,
    ),
    Series("bitnetrun_retries_limit", "`retries` of its spec", "segments", _OF_A_RUN),
    Series(
        "bitnetrun_failure",
        "1 for why the last attempt failed, such as `TeacherUnavailable`, while `bitnetrun_attempts` counts "
        "it or the run has failed by it",
        labels=(*_OF_A_RUN, "reason"),
    ),
    Series("bitnetrun_segments", "segments begun", "segments", _OF_A_RUN),
    Series(
        "bitnetrun_segment_start_timestamp_seconds",
        "when the segment that trains began",
        UNIX_TIME,
        _OF_A_RUN,
    ),
    Series(
        "bitnetrun_gpus",
        "GPUs (`nvidia.com/gpu`) that its pods hold on nodes, as it was last looked at",
        "GPUs",
        _OF_A_RUN,
    ),
    Series(
        "bitnetrun_rollbacks",
        "times it went back to before losses that were not finite",
        "times",
        _OF_A_RUN,
    ),
    Series(
        "bitnetrun_halvings",
        "times a phase's micro batch was halved because memory ran out; 0 has no series",
        "times",
        (*_OF_A_RUN, "phase"),
    ),
    Series(
        "bitnetrun_nonfinite_steps_total",
        "steps left out because loss or gradient was not finite",
        "steps",
        _OF_A_RUN,
        "counter",
    ),
    Series(
        "bitnetrun_phase",
        "1 for the phase of its life, 0 for the others",
        labels=(*_OF_A_RUN, "phase"),
    ),
    Series(
        "bitnetrun_training_phase",
        "1 for the phase of `spec.phases` that is trained",
        labels=(*_OF_A_RUN, "phase"),
    ),
    Series(
        "bitnetrun_condition",
        "1 for the status that a condition has, such as `Checkpointing` `False`",
        labels=(*_OF_A_RUN, "type", "status"),
    ),
    Series(
        "bitnetrun_perplexity",
        "on held-out text when training has ended, of `original`, `before`, `after` and `teacher`",
        "perplexity",
        (*_OF_A_RUN, "model"),
    ),
    Series("bitnetrun_accuracy", "the same of a classifier", "ratio", (*_OF_A_RUN, "model")),
)
"""Of all runs, by the replica of the operator that leads."""

OPERATOR = (
    Series("bitnet_operator_leader", "1 while this replica leads, 0 while it stands by"),
    Series(
        "bitnet_operator_last_seen_timestamp_seconds",
        "when it last saw the cluster: the leader all runs, every 300 s, a standby the lease, every 2 s",
        UNIX_TIME,
    ),
    Series(
        "bitnet_operator_queue_length",
        "runs due now whose work has not begun; none wait in a standby",
        "runs",
    ),
    Series(
        "bitnet_operator_queue_wait_seconds",
        "how late the work on a run begins",
        "seconds",
        type="histogram",
    ),
    Series(
        "bitnet_operator_reconcile_seconds",
        "what one look at a run takes, with all that follows from it",
        "seconds",
        type="histogram",
    ),
    Series(
        "bitnet_operator_reconciles_total",
        "looks at runs that were `done`, or `failed` and are tried again",
        "looks",
        ("outcome",),
        "counter",
    ),
)
"""Of each replica itself."""

ALL: Sequence[Series] = (*TRAINER, *RUNS, *OPERATOR)
_BY_NAME = {series.name: series for series in ALL}


def series(name: str) -> Series:
    """The series of that name, as it is scraped. Raises KeyError where the table has none."""
    return _BY_NAME[name]
