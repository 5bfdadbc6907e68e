"""What `bitnetctl run` prints when it ends: what came out, and where. Pure."""

from collections.abc import Sequence
from itertools import chain

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitnet_crds import BitNetRun, BitNetRunStatus
from bitnet_crds.protocol import Evaluation, run_address
from bitnet_crds.status import RunPhase
from bitnet_operator.wording import (
    befell,
    count,
    decimal_words,
    duration,
    ending,
    percent_words,
    place,
    plural,
    seconds_between,
)

_STYLES = {RunPhase.SUCCEEDED: "bold green", RunPhase.FAILED: "bold red"}
_ARTIFACTS = {
    "HuggingFace": "model (Hugging Face folder)",
    "HuggingFacePacked": "model (Hugging Face folder, 2 bits a weight)",
    "Packed": "model (2 bits a weight)",
    "GGUF": "model (GGUF)",
    "GGUF-TQ2_0": "model (GGUF, 2.06 bits a weight)",
    "GGUF-TQ1_0": "model (GGUF, 1.69 bits a weight)",
    "GGUF-F16": "model (GGUF, 16 bits a weight)",
    "LossPlot": "loss plot",
    "Teacher": "tuned teacher, in full precision",
}
_MODELS = (
    ("the original, in full precision", ""),
    ("the original, ternary, before training", ""),
    ("ternary, after training", "bold green"),
    ("the teacher", ""),
)
"""What is measured, in the order of reading, and in which style it is shown."""


def render_outcome(run: BitNetRun, status: BitNetRunStatus, kept_at: str | None = None) -> RenderableType:
    """Perplexities, places, and the history of a run that has ended or was stopped; `kept_at` is where its
    checkpoint is, if not at the address that it gave."""
    parts: list[RenderableType] = [_title(run, status)]
    if reason := _reason(run, status):
        parts.append(Text(reason))
    if status.evaluation is not None:
        parts += _qualities(status.evaluation)
    parts.append(_places(status, kept_at or run_address(run.spec, run.metadata.namespace, run.metadata.name)))
    if lines := list(befell(status.adjustments)):
        parts.append(_adjustments(lines))
    if status.segments:
        parts.append(_history(status))
    return Group(*chain.from_iterable((part, Text()) for part in parts))


def _title(run: BitNetRun, status: BitNetRunStatus) -> Text:
    took = ""
    if status.segments and (ended := status.segments[-1].ended_at):
        took = f" in {duration(seconds_between(status.segments[0].started_at, ended))}"
    total = f" of {count(status.total_steps)}" if status.total_steps else ""
    return Text.assemble(
        (f"{run.metadata.namespace}/{run.metadata.name} ", "bold"),
        (status.phase.value.lower(), _STYLES.get(status.phase, "bold yellow")),
        f"{took}: step {count(status.step)}{total}, {plural(status.tokens, 'token')}",
        f", {plural(status.skipped_steps, 'step')} skipped" if status.skipped_steps else "",
    )


def _reason(run: BitNetRun, status: BitNetRunStatus) -> str:
    """Why it failed, or how it goes on; while it runs, what it does and what is the matter with it."""
    if status.phase is RunPhase.FAILED:
        return next((c.message for c in status.conditions if c.type == "Failed" and c.status == "True"), "")
    if status.phase is RunPhase.SUSPENDED:
        step = count(status.checkpoint_step or 0)
        if run.spec.suspend:
            return f"With `suspend: false` it goes on from step {step}."
        return f"The same command goes on from step {step}."
    if status.phase is RunPhase.RUNNING:
        said = {c.type: c.message for c in status.conditions if c.type == "Running" or c.status == "True"}
        return ". ".join(said[of] for of in ("Running", "Stalled", "LossPlateau", "Warnings") if of in said)
    return ""


def _qualities(evaluation: Evaluation) -> list[RenderableType]:
    """A table of what was measured: perplexities, or accuracies."""
    tables: list[RenderableType] = []
    if evaluation.tokens is not None:
        perplexities = (
            evaluation.perplexity_original,
            evaluation.perplexity_before,
            evaluation.perplexity_after,
            evaluation.perplexity_teacher,
        )
        heading = f"perplexity on {plural(evaluation.tokens, 'token')} held out"
        tables.append(_quality(heading, [value and decimal_words(value) for value in perplexities]))
    if evaluation.examples is not None:
        accuracies = (evaluation.accuracy_original, evaluation.accuracy_before, evaluation.accuracy_after)
        heading = f"accuracy on {plural(evaluation.examples, 'example')} held out"
        tables.append(_quality(heading, [value and percent_words(value) for value in accuracies]))
    return tables


def _quality(heading: str, values: Sequence[str | None]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    table.add_column(heading)
    table.add_column("", justify="right")
    for (words, style), value in zip(_MODELS, values, strict=False):
        if value is not None:
            table.add_row(words, value, style=style)
    return table


def _places(status: BitNetRunStatus, kept_at: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    table.add_column("what came out", no_wrap=True)
    table.add_column("where", overflow="fold")
    for kind, address in status.artifacts.items():
        table.add_row(_ARTIFACTS.get(kind, kind), Text(place(address)))
    if status.checkpoint_step is not None:
        table.add_row(f"checkpoint of step {count(status.checkpoint_step)}", Text(place(kept_at)))
    if not table.row_count:
        table.add_row("nothing yet", "-")
    return table


def _adjustments(lines: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    table.add_column("what befell it", overflow="fold")
    for line in lines:
        table.add_row(Text(line))
    return table


def _history(status: BitNetRunStatus) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for heading in ("segment", "steps", "micro batch x accumulation", "outcome", "time"):
        table.add_column(heading, justify="left", no_wrap=heading != "outcome")
    for segment in status.segments:
        last = segment.last_step if segment.last_step is not None else segment.end_step
        table.add_row(
            f"{segment.index} {segment.reason}",
            f"{count(segment.first_step)} to {count(last - 1)}" if last > segment.first_step else "none",
            f"{segment.shape.micro_batch_size} x {segment.shape.accumulation}",
            ending(segment),
            duration(seconds_between(segment.started_at, segment.ended_at)) if segment.ended_at else "-",
        )
    return table
