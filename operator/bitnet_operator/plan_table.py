"""What `bitnetctl plan` prints: the ledger of a run, or one step of it, as tables. Pure."""

from collections.abc import Iterator, Sequence
from itertools import chain

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitnet_crds import BitNetRun, BitNetRunSpec, InvalidRun, Plan, PlannedPhase, Problem
from bitnet_crds.advice import Advice
from bitnet_crds.demand import sequences_at_most
from bitnet_crds.objectives import BalancedObjective, Objective, TeacherLogits
from bitnet_crds.optimizer import Optimizer
from bitnet_crds.schedules import LearningRateSchedule
from bitnet_crds.spec import Model, Quantization
from bitnet_crds.tuning_plan import TuningPlan
from bitnet_operator.wording import count, mixture_words, place, plural, significant


def render_plan(run: BitNetRun, plan: Plan, advice: Sequence[Advice] = ()) -> RenderableType:
    """The whole ledger, 100 columns wide at most, and what is known against the run's hyperparameters."""
    title = Text.assemble(
        (f"{run.metadata.namespace}/{run.metadata.name}", "bold"),
        f": {plural(plan.total_steps, 'step')}, {plural(plan.tokens, 'token')}",
    )
    parts: list[RenderableType] = [title, _ledger(run, plan), _phases(run, plan), *_advice(advice)]
    return Group(*chain.from_iterable((part, Text()) for part in parts))


def render_step(run: BitNetRun, plan: Plan, step: int) -> RenderableType:
    """What the ledger says of one step (from 0). Raises InvalidRun where the run has no such step."""
    if not 0 <= step < plan.total_steps:
        last = count(plan.total_steps - 1)
        raise InvalidRun([Problem("--step", f"the run has no step {step}", f"Write one from 0 to {last}")])
    phase = plan.phase_at(step)
    table = _grid()
    table.add_row("phase", Text(phase.name))
    objectives = run.spec.objectives_in(plan.phases.index(phase))
    for name, weight in plan.weights_at(step).items():
        of_what = " of crossEntropy's gradient" if _is_ratio(objectives.get(name)) else ""
        table.add_row(name, f"{significant(weight)}{of_what}")
    table.add_row("learning rate", significant(plan.learning_rate.at(step)))
    if run.spec.optimizer.name == "MuonClip":
        muon = run.spec.optimizer.muon_rate * plan.learning_rate.share_at(step)
        table.add_row("Muon's rate", significant(muon))
    table.add_row("lambda", significant(plan.quantization_lambda.at(step)))
    table.add_row("teacher", "in memory" if phase.teacher else "not in memory")
    table.add_row("global batch", _global_batch(phase))
    table.add_row("mixture", Text(_mixture(run.spec, phase)))
    title = Text.assemble(
        (f"{run.metadata.namespace}/{run.metadata.name}", "bold"),
        f": step {count(step)} of {count(plan.total_steps)}",
    )
    return Group(title, Text(), table, Text())


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _ledger(run: BitNetRun, plan: Plan) -> Table:
    spec = run.spec
    table = _grid()
    table.add_row("total steps", count(plan.total_steps))
    table.add_row("tokens", count(plan.tokens) + _left_out(spec.budget.tokens - plan.tokens))
    table.add_row(
        "one step",
        f"{plural(plan.global_batch_size, 'sequence')} x {plural(plan.sequence_length, 'token')} "
        f"= {plural(plan.tokens_per_step, 'token')}",
    )
    table.add_row("global batch", _global_batch(plan.phases[0]))
    for phase in plan.phases:
        if phase.new_pods:
            table.add_row("", f"{_global_batch(phase)}, in other pods from step {count(phase.first_step)}")
    if (ranks := plan.phases[0].shape.world_size) > 1:
        table.add_row("held by a process", _held(spec.workers.parallelism, ranks))
    table.add_row("model", Text(_model(spec.model)))
    table.add_row("quantisation", _quantization(spec.quantization))
    if spec.classification is not None:
        table.add_row("labels", Text(", ".join(spec.classification.labels)))
    table.add_row("teacher", Text(_teacher(spec, plan)))
    if plan.tuning is not None:
        table.add_row("its tuning", _tuning(plan.tuning))
    for words in _texts(spec, plan):
        table.add_row("text", Text(words))
    for words in _mixtures(spec, plan):
        table.add_row("mixture", Text(words))
    table.add_row("learning rate", _learning_rate(plan.learning_rate))
    if spec.optimizer.name == "MuonClip":
        table.add_row("Muon's rate", _muon(spec.optimizer, plan))
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


def _quantization(quantization: Quantization) -> str:
    """How the projections become ternary, without what is left at None."""
    words = [f"{quantization.weights} weights, 8-bit activations"]
    if quantization.sub_ln != "None":
        words.append(f"SubLN: {quantization.sub_ln}")
    if (correction := quantization.low_rank_correction) is not None:
        words.append(f"low-rank correction: ratio {correction.ratio:g}, {correction.init}")
        words.append("only what is new trains")
    return "; ".join(words)


def _teacher(spec: BitNetRunSpec, plan: Plan) -> str:
    if spec.teacher is None or plan.teacher_start is None:
        return plan.teacher_loading
    return f"{place(spec.teacher.from_)}, loaded at step {count(plan.teacher_start)} ({plan.teacher_loading})"


def _tuning(tuning: TuningPlan) -> str:
    """What comes before step 0, and is none of the run's tokens."""
    return (
        f"{plural(tuning.tokens, 'token')} in {plural(tuning.steps, 'step')} before the run; "
        f"{_learning_rate(tuning.learning_rate)}; micro batch {count(tuning.shape.micro_batch_size)} x "
        f"accumulation {count(tuning.shape.accumulation)}"
    )


def _texts(spec: BitNetRunSpec, plan: Plan) -> Iterator[str]:
    """Where each source is, and which part of a dataset is read."""
    most = sequences_at_most(spec, plan)
    for source in spec.data.sources:
        words = [f"{source.name}: {place(source.uri)}"]
        if source.uri.startswith("hf://"):
            words += [f"subset {source.subset}"] if source.subset else []
            words += [f"split {source.split or 'train'}", f"revision {source.revision or 'main'}"]
        words += [f"field {source.field}"] if source.field != "text" else []
        if source.uri.startswith("hf://") and spec.classification is None:
            tokens = plural(most[source.name] * plan.sequence_length, "token")
            words.append(f"streamed, {tokens} at most and what is held out")
        yield ", ".join(words)


def _mixtures(spec: BitNetRunSpec, plan: Plan) -> list[str]:
    """The sources' shares, by phase where phases differ; nothing where there is one source."""
    if len(spec.data.sources) == 1:
        return []
    if all(phase.mixture == plan.phases[0].mixture for phase in plan.phases):
        return [_mixture(spec, plan.phases[0])]
    return [f"{phase.name}: {_mixture(spec, phase)}" for phase in plan.phases]


def _mixture(spec: BitNetRunSpec, phase: PlannedPhase) -> str:
    mixture = spec.data.mixture
    follows = f" at first, then by {mixture.policy.lower()} every {plural(mixture.measured_every, 'step')}"
    return mixture_words(phase.mixture) + (follows if mixture.policy != "Static" else "")


def _left_out(tokens: int) -> str:
    return f" ({count(tokens)} of the budget are less than a step, and left out)" if tokens else ""


def _global_batch(phase: PlannedPhase) -> str:
    shape = phase.shape
    ranks = f"{plural(shape.workers, 'worker')} x {plural(shape.processes_per_worker, 'process')}"
    passes = f"micro batch {count(shape.micro_batch_size)} x accumulation {count(shape.accumulation)}"
    if phase.auto:
        passes = f"{count(shape.share)}; the micro batch is found by trying"
    return f"{count(shape.global_batch_size)} = {ranks} x {passes}"


def _held(parallelism: str, processes: int) -> str:
    part = "all" if parallelism == "DDP" else f"1/{count(processes)}"
    return f"{part} of weights, gradients and moments ({parallelism})"


def _learning_rate(schedule: LearningRateSchedule) -> str:
    rises = f"rises to {schedule.peak:g} in {plural(schedule.warmup_steps, 'step')}"
    begins = rises if schedule.warmup_steps else f"{schedule.peak:g} from the first step"
    if schedule.decay_start >= schedule.total_steps or schedule.final_share == 1:
        return f"{begins}, then holds"
    lowest = significant(schedule.peak * schedule.final_share) if schedule.final_share else "0"
    curve = {"Linear": "", "Cosine": " along a cosine", "OneMinusSqrt": " as 1 - sqrt"}[schedule.curve]
    return f"{begins}, falls to {lowest} from step {count(schedule.decay_start)}{curve}"


def _muon(optimizer: Optimizer, plan: Plan) -> str:
    return (
        f"{optimizer.muon_rate:g} where the other is {plan.learning_rate.peak:g}; "
        f"attention logits kept to {optimizer.largest_logit:g}"
    )


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
    table.add_column("objective weights", overflow="fold")
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
            _objectives(run, plan, phase),
            "Auto" if phase.auto else count(phase.shape.micro_batch_size),
            "" if phase.auto else count(phase.shape.accumulation),
            "yes" if phase.teacher else "no",
            _span(*(significant(plan.learning_rate.at(step)) for step in (first, last))),
            _span(*(significant(plan.quantization_lambda.at(step)) for step in (first, last))),
        )
    return table


def _span(begin: str, end: str) -> str:
    return begin if begin == end else f"{begin}\n{end}"


def _objectives(run: BitNetRun, plan: Plan, phase: PlannedPhase) -> str:
    """One line an objective that has weight, with the temperature where there is one; in a transition from
    which weight it comes."""
    index = plan.phases.index(phase)
    before = plan.phases[index - 1].weights if phase.transition_steps else phase.weights
    lines = []
    for name, objective in run.spec.objectives_in(index).items():
        old, own = before.get(name, 0.0), phase.weights.get(name, 0.0)
        line = f"{name} {'ratio ' if _is_ratio(objective) else ''}"
        line += f"{own:g}" if old == own else f"{old:g} -> {own:g}"
        if isinstance(objective, TeacherLogits):
            line += f", T {objective.temperature:g}"
        lines.append(line)
    if phase.transition_steps:
        lines.append(f"over {plural(phase.transition_steps, 'step')}, {phase.curve.lower()}")
    return "\n".join(lines)


def _is_ratio(objective: Objective | None) -> bool:
    """Whether its weight is a share of a gradient, and no factor."""
    return isinstance(objective, BalancedObjective) and objective.weighting == "GradientRatio"


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
