"""What is made of a trainer's words while it trains: the conditions that a person watches. Pure."""

from collections.abc import Iterator

from bitnet_crds import BitNetRunStatus, Condition, Progress
from bitnet_crds.health import Plateau
from bitnet_crds.protocol import TrainerState
from bitnet_operator.conditions import Said, condition
from bitnet_operator.observation import Job
from bitnet_operator.policies import plateau
from bitnet_operator.policies.stall import Stall

SPIKE_STEPS = 100
"""For so many steps after a spike the condition LossSpike is true."""


def about_progress(status: BitNetRunStatus, job: Job, title: str) -> Iterator[Said]:
    """Whether the run trains, and what a person should know of it."""
    progress = job.progress
    if progress is None:
        waiting = [f"{pod.name}: {pod.waiting}" for pod in job.by_rank if pod.waiting]
        running = condition(status.conditions, "Running")
        if waiting or (running is not None and running.reason == "Queued"):
            words = "; ".join(waiting) or f"segment {title} has its pods, and they do not answer yet"
            yield Said("Running", "False", "WaitingForPods", words)
        return
    yield Said("Running", "True", doing(progress), f"segment {title}, phase {progress.phase}")
    for about in (about_checkpoints, about_warnings, about_spikes):
        if (said := about(status.conditions, progress)) is not None:
            yield said


def doing(progress: Progress) -> str:
    """The trainer's state. Checkpoints are frequent and short: training."""
    state = progress.state
    return (TrainerState.TRAINING if state is TrainerState.CHECKPOINTING else state).value


def about_warnings(conditions: tuple[Condition, ...], progress: Progress) -> Said | None:
    """What the trainer warns of. It appears with the first warning, and turns where a later process has
    none."""
    if progress.warnings:
        return Said("Warnings", "True", "TrainerWarned", " ".join(progress.warnings))
    if condition(conditions, "Warnings") is not None:
        return Said("Warnings", "False", "NoWarnings", "the trainer warns of nothing")
    return None


def about_checkpoints(conditions: tuple[Condition, ...], progress: Progress) -> Said | None:
    """Whether checkpoints can be written. It appears when one fails and training goes on without, and turns
    when one succeeds."""
    if progress.checkpoint_error is not None:
        return Said("Checkpointing", "False", "CheckpointFailed", progress.checkpoint_error)
    known = condition(conditions, "Checkpointing") is not None
    if known and progress.checkpoint is not None and progress.checkpoint_at is not None:
        return Said("Checkpointing", "True", "Committed", f"step {progress.checkpoint.step} is kept")
    return None


def about_spikes(conditions: tuple[Condition, ...], progress: Progress) -> Said | None:
    """Whether the loss spiked lately. It appears with the first spike."""
    last = progress.last_loss_spike
    if last is not None and progress.step - last < SPIKE_STEPS:
        message = f"the loss spiked in step {last}, {progress.loss_spikes} times in all"
        return Said("LossSpike", "True", "Spike", message)
    if condition(conditions, "LossSpike") is not None and last is not None:
        return Said("LossSpike", "False", "NoSpike", f"no spike since step {last}")
    return None


def about_plateau(
    conditions: tuple[Condition, ...], judgement: plateau.Judgement | None, health: Plateau
) -> Said | None:
    """Whether the loss has stopped falling. It appears with the first plateau, and turns where the loss falls
    again or cannot be judged any more."""
    before = condition(conditions, "LossPlateau")
    if judgement is not None and judgement.flat:
        if before is not None and before.status == "True":
            return None  # it says since when, and that does not move
        least = float(health.min_improvement)
        message = (
            f"since step {judgement.since_step} the loss fell by {judgement.improvement:.2%} over "
            f"{health.window_tokens} tokens, less than {least:.2%}"
        )
        return Said("LossPlateau", "True", "LossPlateau", message)
    if before is None or before.status == "False":
        return None
    why = "this stretch is not judged" if judgement is None else f"it fell by {judgement.improvement:.2%}"
    return Said("LossPlateau", "False", "LossFalls", why)


def about_stall(conditions: tuple[Condition, ...], stall: Stall | None) -> Said | None:
    """Whether nothing moves. It appears with the first stall, and turns when something does."""
    if stall is not None:
        return Said("Stalled", "True", stall.reason, stall.message)
    before = condition(conditions, "Stalled")
    if before is not None and before.status == "True":
        return Said("Stalled", "False", "Moving", "it goes on")
    return None
