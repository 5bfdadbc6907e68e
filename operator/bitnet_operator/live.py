"""What `bitnetctl run` shows while a run trains: a live panel in a terminal, plain lines anywhere else."""

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bitnet_crds import BitNetRun, BitNetRunStatus, Plan, Progress, Segment, plan
from bitnet_crds.protocol import TeacherState, TrainerState
from bitnet_crds.status import SegmentOutcome
from bitnet_operator.wording import (
    befell,
    count,
    duration,
    ending,
    mixture_words,
    plural,
    significant,
    sparkline,
)

PLAIN_INTERVAL = 10.0
"""Seconds between two lines on progress, where there is no terminal."""
_CURVE_WIDTH = 48
_LABEL_STYLE = "cyan"

_DOING = {
    TrainerState.STARTING: "starting",
    TrainerState.LOADING_MODEL: "loading the model",
    TrainerState.PREPARING_DATA: "preparing the text",
    TrainerState.TRAINING: "training",
    TrainerState.CHECKPOINTING: "writing a checkpoint",
    TrainerState.EVALUATING: "measuring quality on held-out text",
    TrainerState.EXPORTING: "exporting",
    TrainerState.FINISHED: "finished",
}


class LiveView:
    """Shows a run while it lasts: `with LiveView(...) as view: view.update(status, progress)`.

    What happens once (a segment begins or ends, a checkpoint is committed) is a line that stays; how far
    the run is, is a panel below it, or, where `console` is no terminal, a line every ten seconds.
    """

    def __init__(self, run: BitNetRun, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._run = run
        self._console = console
        self._clock = clock
        self._live = Live(console=console, transient=True, auto_refresh=False)
        self._curve: dict[int, float] = {}
        """Loss by completed steps."""
        self._said: tuple[Segment, ...] = ()
        self._warned: set[str] = set()
        self._befell: set[str] = set()
        self._checkpoint: int | None = None
        self._doing: TrainerState | None = None
        self._line_at = float("-inf")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, status: BitNetRunStatus, progress: Progress | None) -> None:
        """Shows what is known now. `progress` is missing while no trainer answers."""
        if progress is not None and progress.loss is not None:
            # After a roll-back, or with the run after its teacher's tuning, steps begin lower again.
            known = {step: loss for step, loss in self._curve.items() if step < progress.step}
            self._curve = known | {progress.step: progress.loss}
        for line in self._news(status, progress):
            self._console.print(line, highlight=False, soft_wrap=not self._console.is_terminal)
        if self._console.is_terminal:
            self._live.update(self.panel(status, progress), refresh=True)
        elif progress is not None:
            self._plain(progress, self._ledger(status))

    def panel(self, status: BitNetRunStatus, progress: Progress | None) -> RenderableType:
        """How far the run is, in a few lines."""
        ledger = self._ledger(status)
        step, total = (status.step, ledger.end_step)
        if progress is not None:
            # Of the teacher's tuning, while that lasts.
            step, total = progress.step, progress.total_steps
        share = step / total
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            Text(self._run.metadata.name, style="bold"),
            ProgressBar(total=total, completed=step, width=34),
            f"{count(step)}/{count(total)}",
            f"{share:.0%}",
            Text(_left(progress, ledger), style="dim"),
        )
        doing = _DOING[progress.state] if progress is not None else _waiting(status)
        return Group(
            bar, Text(f"{_segment_title(status)}{doing}", style="dim"), self._figures(status, progress)
        )

    def _ledger(self, status: BitNetRunStatus) -> Plan:
        """The run's ledger, after what befell it."""
        return plan(self._run.spec, status.adjustments)

    def _figures(self, status: BitNetRunStatus, progress: Progress | None) -> RenderableType:
        if progress is None:
            return Text()
        spark = sparkline(
            list(self._curve.values()), _CURVE_WIDTH, ascii_only=self._console.options.ascii_only
        )
        table = Table.grid(padding=(0, 2))
        for width in (10, 18, 14, None):
            table.add_column(width=width, no_wrap=True)
        for (left, left_value), (right, right_value) in (
            (("phase", progress.phase), ("lambda", f"{progress.quantization_lambda:.3f}")),
            (("tokens/s", _rate(progress)), ("learning rate", significant(progress.learning_rate))),
            (("tokens", count(progress.tokens)), ("teacher", _teacher(progress, self._ledger(status)))),
            (("checkpoint", _checkpoint(status, progress)), ("batch", _batch(progress))),
        ):
            table.add_row(
                Text(left, style=_LABEL_STYLE), left_value, Text(right, style=_LABEL_STYLE), right_value
            )
        loss = Text.assemble(
            (f"{'loss':<12}", _LABEL_STYLE), (f"{_loss(progress):<20}", "bold"), (spark, "green")
        )
        skipped = (
            [Text(f"{plural(progress.skipped_steps, 'step')} skipped: not finite", style="yellow")]
            if progress.skipped_steps
            else []
        )
        mixture = (
            [Text.assemble((f"{'mixture':<12}", _LABEL_STYLE), mixture_words(progress.mixture))]
            if len(progress.mixture) > 1
            else []
        )
        return Group(loss, *_objectives(progress), table, *mixture, *skipped)

    def _plain(self, progress: Progress, ledger: Plan) -> None:
        """One line where the trainer does something else now; while it trains, one every ten seconds."""
        now, changed = self._clock(), progress.state is not self._doing
        training = progress.state is TrainerState.TRAINING
        if not changed and not (training and now - self._line_at >= PLAIN_INTERVAL):
            return
        self._doing, self._line_at = progress.state, now
        if not training:
            self._console.print(_DOING[progress.state], highlight=False)
            return
        words = [
            f"step {count(progress.step)}/{count(progress.total_steps)}",
            f"phase {progress.phase}",
            f"loss {_loss(progress)}",
            *(f"{name} {figures}" for name, figures in _parts(progress)),
            f"{_rate(progress)} tokens/s",
            f"lambda {progress.quantization_lambda:.3f}",
            f"learning rate {significant(progress.learning_rate)}",
            f"teacher {_teacher(progress, ledger)}",
            f"mixture {mixture_words(progress.mixture)}" if len(progress.mixture) > 1 else "",
            _left(progress, ledger),
        ]
        self._console.print(", ".join(filter(None, words)), highlight=False, soft_wrap=True)

    def _news(self, status: BitNetRunStatus, progress: Progress | None) -> Iterator[Text]:
        """What has happened since the last look, a line each."""
        for index, segment in enumerate(status.segments):
            before = self._said[index] if index < len(self._said) else None
            if before is None:
                yield Text(f"segment {segment.index} ({segment.reason}): {_work(segment)}")
            if (before is None or before.outcome != segment.outcome) and segment.outcome in _BAD_ENDS:
                why = segment.message or "no reason given"
                yield Text(
                    f"segment {segment.index} ended: {ending(segment)}: {why}",
                    style="yellow",
                )
        self._said = status.segments
        for line in befell(status.adjustments):
            if line not in self._befell:
                yield Text(line, style="yellow")
        self._befell = {*self._befell, *befell(status.adjustments)}
        warnings = progress.warnings if progress is not None else ()
        yield from (Text(warning, style="yellow") for warning in warnings if warning not in self._warned)
        self._warned = {*self._warned, *warnings}
        checkpoint = progress.checkpoint if progress is not None else None
        if checkpoint is not None and checkpoint.step != self._checkpoint:
            self._checkpoint = checkpoint.step
            yield Text(f"checkpoint at step {count(checkpoint.step)}", style="dim")


_BAD_ENDS = (
    SegmentOutcome.FAILED,
    SegmentOutcome.PREEMPTED,
    SegmentOutcome.SUSPENDED,
    SegmentOutcome.ENDED,
)


def _left(progress: Progress | None, ledger: Plan) -> str:
    """How long training will take still, going by the present speed."""
    if progress is None or not progress.tokens_per_second:
        return ""
    tokens = (progress.total_steps - progress.step) * ledger.tokens_per_step
    return f"about {duration(tokens / progress.tokens_per_second)} left" if tokens else ""


def _work(segment: Segment) -> str:
    """What a segment is to do. One after the last step's checkpoint has no step left."""
    if segment.first_step >= segment.end_step:
        return "evaluation and export alone"
    tunes = "the teacher is tuned, " if segment.purpose == "TuneTeacher" else ""
    return (
        f"{tunes}steps {count(segment.first_step)} to {count(segment.end_step - 1)}, micro batch "
        f"{segment.shape.micro_batch_size} x accumulation {segment.shape.accumulation}"
    )


def _segment_title(status: BitNetRunStatus) -> str:
    if not status.segments:
        return ""
    segment = status.segments[-1]
    return f"segment {segment.index} ({segment.reason}): "


def _waiting(status: BitNetRunStatus) -> str:
    return f"waiting until {status.retry_at} to try again" if status.retry_at else "waiting for the trainer"


def _loss(progress: Progress) -> str:
    return "-" if progress.loss is None else f"{progress.loss:.4f}"


def _parts(progress: Progress) -> list[tuple[str, str]]:
    """Each objective that ran in the last step with its loss and weight; none where the loss is one's own."""
    if len(progress.objectives) == 1 and next(iter(progress.objectives.values())).weight == 1:
        return []
    return [
        (name, f"{part.raw:.4f} x {significant(part.weight)}") for name, part in progress.objectives.items()
    ]


def _objectives(progress: Progress) -> list[RenderableType]:
    """A row for each part of the loss."""
    parts = _parts(progress)
    if not parts:
        return []
    table = Table.grid(padding=(0, 2))
    for width in (10, 18, None):
        table.add_column(width=width, no_wrap=True)
    for row, (name, figures) in enumerate(parts):
        table.add_row(Text("" if row else "objectives", style=_LABEL_STYLE), name, figures)
    return [table]


def _rate(progress: Progress) -> str:
    return "-" if progress.tokens_per_second is None else count(round(progress.tokens_per_second))


def _teacher(progress: Progress, ledger: Plan) -> str:
    if progress.phase not in {phase.name for phase in ledger.phases}:
        return "being tuned"
    if progress.teacher is TeacherState.ABSENT and ledger.teacher_start is not None:
        ahead = ledger.teacher_start > progress.step
        return f"from step {count(ledger.teacher_start)}" if ahead else "not in use"
    return "none" if progress.teacher is TeacherState.ABSENT else progress.teacher.value.lower()


def _checkpoint(status: BitNetRunStatus, progress: Progress) -> str:
    step = progress.checkpoint.step if progress.checkpoint is not None else status.checkpoint_step
    return "none yet" if step is None else f"step {count(step)}"


def _batch(progress: Progress) -> str:
    ranks = f"{plural(progress.world_size, 'process')} x " if progress.world_size > 1 else ""
    return f"{ranks}micro batch {progress.micro_batch_size} x accumulation {progress.accumulation}"
