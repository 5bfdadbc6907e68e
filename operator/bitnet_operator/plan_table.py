"""What `bitnetctl plan` prints: the ledger of a run as tables. Pure."""

from collections.abc import Sequence
from itertools import chain

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitnet_crds import BitNetRun, Plan, PlannedPhase, Shape
from bitnet_crds.advice import Advice
from bitnet_crds.spec import Model
from bitnet_operator.wording import count, place, plural, significant


def render_plan(run: BitNetRun, plan: Plan, advice: Sequence[Advice] = ()) -> RenderableType:
    """The whole ledger, 100 columns wide at most, and what is known against the run's hyperparameters."""
    title = Text.assemble(
        (f"{run.metadata.namespace}/{run.metadata.name}", "bold"),
        f": {plural(plan.total_steps, 'step')}, {plural(plan.tokens, 'token')}",
    )
    parts: list[RenderableType] = [title, _ledger(run, plan), _phases(run, plan), *_advice(advice)]
    return Group(*chain.from_iterable((part, Text()) for part in parts))


def _ledger(run: BitNetRun, plan: Plan) -> Table:
    spec = run.spec
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("total steps", count(plan.total_steps))
    table.add_row("tokens", count(plan.tokens) + _left_out(spec.budget.tokens - plan.tokens))
    table.add_row(
        "one step",
        f"{plural(plan.global_batch_size, 'sequence')} x {plural(plan.sequence_length, 'token')} "
        f"= {plural(plan.tokens_per_step, 'token')}",
    )
    table.add_row("global batch", _global_batch(plan.phases[0].shape))
    table.add_row("model", Text(_model(spec.model)))
    if spec.teacher is not None and plan.teacher_start is not None:
        loaded = f", loaded at step {count(plan.teacher_start)}"
        table.add_row("teacher", Text(place(spec.teacher.from_) + loaded))
    table.add_row("learning rate", _learning_rate(plan))
    table.add_row("lambda", _lambda(plan))
    table.add_row(
        "checkpoints",
        Text(
            f"every {plural(spec.checkpoint.every_steps, 'step')} in {place(spec.checkpoint.uri)}, "
            f"the newest {count(spec.checkpoint.keep)} kept"
        ),
    )
    return table


def _model(model: Model) -> str:
    if model.from_ is not None:
        return place(model.from_)
    return f"{model.preset}, from random weights, tokenizer of {place(model.tokenizer or '')}"


def _left_out(tokens: int) -> str:
    return f" ({count(tokens)} of the budget are less than a step, and left out)" if tokens else ""


def _global_batch(shape: Shape) -> str:
    return (
        f"{count(shape.global_batch_size)} = {plural(shape.workers, 'worker')} x "
        f"{plural(shape.processes_per_worker, 'process')} x "
        f"micro batch {count(shape.micro_batch_size)} x accumulation {count(shape.accumulation)}"
    )


def _learning_rate(plan: Plan) -> str:
    schedule = plan.learning_rate
    rises = f"rises to {schedule.peak:g} in {plural(schedule.warmup_steps, 'step')}"
    begins = rises if schedule.warmup_steps else f"{schedule.peak:g} from the first step"
    falls = schedule.decay_start < schedule.total_steps
    return begins + (f", falls to 0 from step {count(schedule.decay_start)}" if falls else ", then holds")


def _lambda(plan: Plan) -> str:
    schedule = plan.quantization_lambda
    if not schedule.steps:
        return "1 from the first step: ternary throughout"
    ending = "" if schedule.steps < plan.total_steps else "; the run ends before it is 1"
    return f"0 to 1 over {plural(schedule.steps, 'step')}, {schedule.curve.lower()}{ending}"


def _phases(run: BitNetRun, plan: Plan) -> Table:
    """A row a phase. Where something changes in the course of it, its first step stands above its last."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    table.add_column("phase", overflow="fold")
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("objective weights", no_wrap=True)
    table.add_column("micro\nbatch", justify="right", no_wrap=True)
    table.add_column("accum.", justify="right", no_wrap=True)
    table.add_column("teacher", no_wrap=True)
    table.add_column("learning\nrate", justify="right", no_wrap=True)
    table.add_column("lambda", justify="right", no_wrap=True)
    for phase in plan.phases:
        first, last = phase.first_step, phase.end_step - 1
        table.add_row(
            phase.name,
            _span(count(first), count(last)),
            _objectives(run, phase),
            count(phase.shape.micro_batch_size),
            count(phase.shape.accumulation),
            "yes" if phase.teacher else "no",
            _span(*(significant(plan.learning_rate.at(step)) for step in (first, last))),
            _span(*(significant(plan.quantization_lambda.at(step)) for step in (first, last))),
        )
    return table


def _span(begin: str, end: str) -> str:
    return begin if begin == end else f"{begin}\n{end}"


def _objectives(run: BitNetRun, phase: PlannedPhase) -> str:
    """One line an objective that has weight, with the temperature where there is one."""
    asked = next(asked for asked in run.spec.phases if asked.name == phase.name).objectives
    heat = f", T {asked.teacher_logits.temperature:g}" if asked.teacher_logits else ""
    return "\n".join(
        f"{name} {weight:g}{heat if name == 'teacherLogits' else ''}"
        for name, weight in phase.weights.items()
        if weight
    )


def _advice(advice: Sequence[Advice]) -> list[Text]:
    return [
        Text.assemble(
            ("advice ", "bold yellow"),
            (item.field, "yellow"),
            f": {_sentence(item.why)} {_sentence(item.fix)}",
            (f" ({item.source})" if item.source else "", "dim"),
        )
        for item in advice
    ]


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!", "`")) else f"{text}."
