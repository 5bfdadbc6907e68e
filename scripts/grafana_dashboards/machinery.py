"""Panels of one run about what it runs on: speed, memory, checkpoints, segments."""

from grafana_dashboards.board import AnyPanel
from grafana_dashboards.panels import Query, lines
from grafana_dashboards.promql import one


def speed() -> list[AnyPanel]:
    """How fast it is, on what, and how full that is."""
    return [
        lines(
            "Tokens a second",
            "By all ranks, a mean over ten steps. Flat within a phase, lower with a teacher in. A fall"
            " without a change of phase or shape is a slow disk, network or neighbour.",
            "si:tok/s",
            Query(one("bitnet_trainer_tokens_per_second"), "tokens a second"),
            low=0,
        ),
        lines(
            "Time of a step",
            "The same mean. It changes with accumulation, and jumps where evaluation or a checkpoint gets"
            " in its way.",
            "s",
            Query(one("bitnet_trainer_step_seconds"), "step"),
            low=0,
        ),
        lines(
            "Model FLOPs utilisation",
            "Share of the GPUs' dense bfloat16 peak that the student's arithmetic took, on H100 SXM, H200,"
            " A100 and L4. It grows with the model and the micro batch, and falls while a teacher runs; flat"
            " within a phase is normal.",
            "percentunit",
            Query(one("bitnet_trainer_model_flops_utilization_ratio"), "utilisation"),
            low=0,
            high=1,
            absent="Not on a GPU whose peak is known.",
        ),
        lines(
            "GPU memory of rank 0",
            "Reserved is what the process holds, peak the largest in tensors since it began. Flat is"
            " normal, with a step where the teacher comes in; with microBatchSize Auto 5 % stay free.",
            "bytes",
            Query(one("bitnet_trainer_device_memory_reserved_bytes"), "reserved"),
            Query(one("bitnet_trainer_device_memory_peak_bytes"), "peak"),
            low=0,
            absent="Not on a GPU.",
        ),
        lines(
            "Host memory of rank 0",
            "Largest resident memory of the process so far, so it never falls within a segment. It rises"
            " while models load, then stays; one that goes on rising will end with the pod killed.",
            "bytes",
            Query(one("bitnet_trainer_host_memory_peak_bytes"), "peak"),
            low=0,
        ),
        lines(
            "Shape",
            "Micro batch x accumulation x ranks is the global batch, which holds: where a teacher comes in"
            " or memory ran out, the micro batch halves and accumulation doubles. GPUs are those that its"
            " pods hold.",
            "none",
            Query(one("bitnet_trainer_micro_batch_size"), "micro batch"),
            Query(one("bitnet_trainer_accumulation"), "accumulation"),
            Query(one("bitnet_trainer_world_size"), "ranks"),
            Query(one("bitnetrun_gpus"), "GPUs"),
            counts=True,
            low=0,
        ),
    ]


def checkpoints() -> list[AnyPanel]:
    """What a failure would cost, and what befell the run."""
    return [
        lines(
            "Steps and checkpoints",
            "Steps completed, and those in the newest checkpoint, a staircase close below. Where a run goes"
            " back, both meet: what lay between is trained again.",
            "none",
            Query(one("bitnetrun_step"), "step"),
            Query(one("bitnetrun_checkpoint_step"), "checkpoint"),
            counts=True,
            low=0,
        ),
        lines(
            "Time of a checkpoint",
            "From the copy of the state to the commit, of the last one. Training goes on meanwhile; longer"
            " than the time between two checkpoints is too long.",
            "s",
            Query(one("bitnet_trainer_checkpoint_duration_seconds"), "duration"),
            low=0,
        ),
        lines(
            "Age of the checkpoint",
            "Since this process last committed one. A saw-tooth is normal; a rise that does not end says"
            " that checkpoints do not come.",
            "s",
            Query(f"time() - {one('bitnet_trainer_checkpoint_timestamp_seconds')}", "age"),
            low=0,
        ),
        lines(
            "Failed checkpoints",
            "Checkpoints that could not be written, in this process. 0 is normal; training goes on, and the"
            " condition Checkpointing has the reason.",
            "none",
            Query(one("bitnet_trainer_checkpoint_failures_total"), "failed"),
            counts=True,
            low=0,
        ),
        lines(
            "Segments and attempts",
            "Segments begun, for whatever reason: phases, restarts, preemptions. Attempts are failures in a"
            " row, and go back to 0 with a new checkpoint.",
            "none",
            Query(one("bitnetrun_segments"), "segments"),
            Query(one("bitnetrun_attempts"), "attempts"),
            counts=True,
            low=0,
        ),
        lines(
            "Roll-backs and halvings",
            "Times it went back to before losses that were not finite, and times the micro batch was halved"
            " because memory ran out. 0 roll-backs are normal; a halving happens once and is remembered.",
            "none",
            Query(one("bitnetrun_rollbacks"), "roll-backs"),
            Query(one("bitnetrun_halvings", "phase"), "halvings in {{phase}}"),
            counts=True,
            low=0,
        ),
    ]
