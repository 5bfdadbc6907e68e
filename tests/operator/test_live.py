"""What `bitnetctl run` shows: a panel in a terminal, lines elsewhere, and what came out at the end."""

import io
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from rich.console import Console, RenderableType

from bitnet_crds import (
    BitNetRun,
    BitNetRunStatus,
    Checkpoint,
    Condition,
    Plan,
    Progress,
    Segment,
    SegmentReason,
    parse_run,
    plan,
)
from bitnet_crds.protocol import Evaluation, ObjectiveProgress, TeacherState, TrainerState
from bitnet_crds.status import RunPhase, SegmentOutcome
from bitnet_operator.backends.local import LocalMachine
from bitnet_operator.live import LiveView
from bitnet_operator.observation import Key
from bitnet_operator.outcome import render_outcome
from bitnet_operator.plan_table import render_plan


@pytest.fixture
def run() -> BitNetRun:
    """60 steps of 512 tokens; the teacher comes in at step 42."""
    return parse_run(
        {
            "apiVersion": "bitnet.training/v1alpha1",
            "kind": "BitNetRun",
            "metadata": {"name": "small"},
            "spec": {
                "model": {"from": "file:///model"},
                "data": {"sequenceLength": 128, "sources": [{"name": "text", "uri": "file:///text"}]},
                "budget": {"tokens": 60 * 512, "globalBatchSize": 4},
                "phases": [
                    {"name": "main", "until": "70%", "objectives": {"crossEntropy": {"weight": 1}}},
                    {"name": "distill", "until": "100%", "objectives": {"teacherLogits": {"weight": 1}}},
                ],
                "teacher": {"from": "file:///model"},
                "workers": {"gpusPerWorker": 0, "microBatchSize": 4},
                "checkpoint": {"uri": "file:///runs"},
            },
        }
    )


@pytest.fixture
def ledger(run: BitNetRun) -> Plan:
    return plan(run.spec)


def segment(ledger: Plan, **changes: object) -> Segment:
    return Segment(
        index=0,
        reason=SegmentReason.START,
        job="small-0",
        first_step=0,
        end_step=42,
        shape=ledger.phases[0].shape,
        started_at="2026-01-01T00:00:00Z",
    ).model_copy(update=changes)


def status(*segments: Segment, **changes: object) -> BitNetRunStatus:
    known = BitNetRunStatus(phase=RunPhase.RUNNING, total_steps=60, segments=segments)
    return known.model_copy(update=changes)


def progress(step: int, **changes: object) -> Progress:
    return Progress(
        state=TrainerState.TRAINING,
        step=step,
        total_steps=60,
        phase="main" if step <= 42 else "distill",
        loss=5.0 - step / 60,
        tokens=step * 512,
        tokens_per_second=102.4,
        learning_rate=0.001,
        quantization_lambda=0.5,
        micro_batch_size=4,
        accumulation=1,
    ).model_copy(update=changes)


def shown(renderable: RenderableType, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


class Screen:
    """A LiveView on a console that keeps what it is given, with a clock that the test moves."""

    def __init__(self, run: BitNetRun, *, terminal: bool) -> None:
        self.now = 0.0
        self.console = Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None)
        self.view = LiveView(run, self.console, lambda: self.now)

    @property
    def text(self) -> str:
        file = self.console.file
        assert isinstance(file, io.StringIO)
        return file.getvalue()


@pytest.fixture
def lines(run: BitNetRun) -> Iterator[Screen]:
    screen = Screen(run, terminal=False)
    with screen.view:
        yield screen


def test_the_panel_holds_the_figures(run: BitNetRun, ledger: Plan) -> None:
    view = Screen(run, terminal=True).view
    text = shown(view.panel(status(segment(ledger)), progress(15)))
    for word in ("15/60", "25%", "main", "102", "7,680", "0.500", "0.001", "from step 42", "4.7500"):
        assert word in text
    assert "about 3m 45s left" in text, "45 steps of 512 tokens at 102.4 tokens/s"
    assert "micro batch 4 x accumulation 1" in text


def test_the_panel_shows_the_mixture_where_there_is_one(run: BitNetRun, ledger: Plan) -> None:
    view = Screen(run, terminal=True).view
    mixed = progress(15, mixture={"web": 0.625, "code": 0.375})
    assert "mixture     web 62.5%, code 37.5%" in shown(view.panel(status(segment(ledger)), mixed))
    alone = progress(15, mixture={"web": 1.0})
    assert "mixture" not in shown(view.panel(status(segment(ledger)), alone))


PARTS = {
    "crossEntropy": ObjectiveProgress(raw=2.5, weight=1, weighted=2.5),
    "attentionRelations": ObjectiveProgress(raw=12.25, weight=0.0125, weighted=0.153125),
}


def test_the_panel_shows_what_the_loss_is_made_of(run: BitNetRun, ledger: Plan) -> None:
    view = Screen(run, terminal=True).view
    text = shown(view.panel(status(segment(ledger)), progress(15, objectives=PARTS)))
    rows = [line.rstrip() for line in text.splitlines() if " x " in line and "." in line]
    assert rows == [
        "objectives  crossEntropy        2.5000 x 1",
        "            attentionRelations  12.2500 x 0.0125",
    ]
    alone = progress(15, objectives={"crossEntropy": PARTS["crossEntropy"]})
    assert "objectives" not in shown(view.panel(status(segment(ledger)), alone)), "it is the loss itself"


def test_a_line_holds_what_the_panel_does(lines: Screen, ledger: Plan) -> None:
    mixed = progress(15, objectives=PARTS, mixture={"web": 0.625, "code": 0.375})
    lines.view.update(status(segment(ledger)), mixed)
    for words in ("attentionRelations 12.2500 x 0.0125", "mixture web 62.5%, code 37.5%"):
        assert words in lines.text


def test_the_panel_shows_the_loss_curve(run: BitNetRun, ledger: Plan) -> None:
    screen = Screen(run, terminal=True)
    with screen.view as view:
        for step in (1, 20, 40):
            view.update(status(segment(ledger)), progress(step))
        assert "█▅▁" in shown(view.panel(status(segment(ledger)), progress(40)))


def test_the_panel_says_where_the_teacher_stands(run: BitNetRun, ledger: Plan) -> None:
    view = Screen(run, terminal=True).view
    loading = progress(42, teacher=TeacherState.LOADING)
    assert "loading" in shown(view.panel(status(segment(ledger)), loading))
    ready = progress(45, teacher=TeacherState.READY)
    assert "ready" in shown(view.panel(status(segment(ledger)), ready))


def test_the_panel_without_a_trainer_says_what_is_waited_for(run: BitNetRun, ledger: Plan) -> None:
    view = Screen(run, terminal=True).view
    assert "waiting for the trainer" in shown(view.panel(status(segment(ledger)), None))
    waiting = status(segment(ledger), retry_at="2026-01-01T00:01:00Z", step=20)
    text = shown(view.panel(waiting, None))
    assert "2026-01-01T00:01:00Z" in text
    assert "20/60" in text


def test_a_terminal_gets_the_panel_and_the_news(run: BitNetRun, ledger: Plan) -> None:
    screen = Screen(run, terminal=True)
    with screen.view as view:
        view.update(status(segment(ledger)), progress(15))
    assert "segment 0 (Start): steps 0 to 41" in screen.text
    assert "15/60" in screen.text


def test_lines_come_every_ten_seconds(lines: Screen, ledger: Plan) -> None:
    for step in range(1, 31):
        lines.now = float(step)
        lines.view.update(status(segment(ledger)), progress(step))
    steps = [line.split(",")[0] for line in lines.text.splitlines() if line.startswith("step ")]
    assert steps == ["step 1/60", "step 11/60", "step 21/60"]
    assert "\x1b" not in lines.text


def test_a_new_state_is_a_line_at_once(lines: Screen, ledger: Plan) -> None:
    for state in (TrainerState.LOADING_MODEL, TrainerState.LOADING_MODEL, TrainerState.EVALUATING):
        lines.now += 20
        lines.view.update(status(segment(ledger)), progress(0, state=state))
    assert lines.text.splitlines()[1:] == ["loading the model", "measuring quality on held-out text"]


def test_what_happens_once_is_said_once(lines: Screen, ledger: Plan) -> None:
    kept = Checkpoint(step=20, uri="file:///runs")
    failed = segment(
        ledger, outcome=SegmentOutcome.FAILED, exit_reason="OutOfMemory", message="killed by the kernel"
    )
    retry = segment(ledger, index=1, reason=SegmentReason.RETRY, first_step=20)
    for _ in range(2):
        lines.view.update(status(segment(ledger)), progress(20, checkpoint=kept))
    for _ in range(2):
        lines.view.update(status(failed), None)
    for _ in range(2):
        lines.view.update(status(failed, retry), progress(21, checkpoint=kept))
    told = [line for line in lines.text.splitlines() if not line.startswith("step ")]
    assert told == [
        "segment 0 (Start): steps 0 to 41, micro batch 4 x accumulation 1",
        "checkpoint at step 20",
        "segment 0 ended: OutOfMemory: killed by the kernel",
        "segment 1 (Retry): steps 20 to 41, micro batch 4 x accumulation 1",
    ]


def test_each_warning_of_the_trainer_is_said_once(lines: Screen, ledger: Plan) -> None:
    for warnings in (("no key",), ("no key",), ("no key", "no disk")):
        lines.view.update(status(segment(ledger)), progress(20, warnings=warnings))
    told = [line for line in lines.text.splitlines() if not line.startswith(("step ", "segment "))]
    assert told == ["no key", "no disk"]


def test_a_retry_with_no_step_left_says_what_it_does(lines: Screen, ledger: Plan) -> None:
    retry = segment(ledger, reason=SegmentReason.RETRY, first_step=60, end_step=60)
    lines.view.update(status(retry), None)
    assert lines.text.splitlines() == ["segment 0 (Retry): evaluation and export alone"]


async def test_a_dead_trainers_last_answer_is_not_shown(run: BitNetRun, ledger: Plan, tmp_path: Path) -> None:
    document = run.model_dump(mode="json", by_alias=True, exclude_none=True)
    document["spec"]["checkpoint"]["uri"] = f"file://{tmp_path}"
    async with aiohttp.ClientSession() as http:
        machine = LocalMachine(document, http)
        job = machine.job_folder("small-0")
        job.path.mkdir(parents=True)
        job.alive.write_text("1 1\n")
        machine.status = status(segment(ledger), retry_at="2026-01-01T00:01:00Z", step=15)
        machine.progress = progress(15)
        await machine.observe(Key("default", "small"))
    text = shown(LiveView(run, Console()).panel(machine.status, machine.progress))
    assert "waiting until 2026-01-01T00:01:00Z" in text
    assert "left" not in text


def test_brackets_in_a_path_stay(run: BitNetRun, ledger: Plan) -> None:
    spec = run.spec
    spec = spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"from_": "file:///model[red]"}),
            "teacher": spec.teacher and spec.teacher.model_copy(update={"from_": "file:///teacher[red]"}),
            "checkpoint": spec.checkpoint.model_copy(update={"uri": "file:///runs[red]"}),
        }
    )
    bracketed = run.model_copy(update={"spec": spec})
    text = shown(render_plan(bracketed, ledger), 120)
    assert all(path in text for path in ("/model[red]", "/teacher[red]", "/runs[red]"))
    ended = status(checkpoint_step=60, artifacts={"HuggingFace": "file:///export[red]"})
    text = shown(render_outcome(bracketed, ended), 120)
    assert all(path in text for path in ("/export[red]", "/runs[red]/default/small"))


def test_skipped_steps_are_not_hidden(run: BitNetRun, ledger: Plan) -> None:
    view = Screen(run, terminal=True).view
    assert "skipped" not in shown(view.panel(status(segment(ledger)), progress(15)))
    text = shown(view.panel(status(segment(ledger)), progress(15, skipped_steps=2)))
    assert "2 steps skipped: not finite" in text


def test_the_outcome_of_a_run_that_succeeded(run: BitNetRun, ledger: Plan) -> None:
    first = segment(ledger, outcome=SegmentOutcome.COMPLETED, last_step=42, ended_at="2026-01-01T00:04:00Z")
    second = segment(
        ledger,
        index=1,
        reason=SegmentReason.TEACHER_PHASE,
        first_step=42,
        end_step=60,
        shape=ledger.phases[1].shape,
        outcome=SegmentOutcome.COMPLETED,
        started_at="2026-01-01T00:04:00Z",
        ended_at="2026-01-01T00:06:12Z",
    )
    ended = status(
        first,
        second,
        phase=RunPhase.SUCCEEDED,
        step=60,
        tokens=30_720,
        checkpoint_step=60,
        evaluation=Evaluation(
            tokens=7040,
            perplexity_original="31.24571",
            perplexity_before="182331.4",
            perplexity_after="412.31",
            perplexity_teacher="30.1",
        ),
        artifacts={"HuggingFace": "file:///runs/default/small/export", "LossPlot": "/runs/loss.png"},
    )
    text = shown(render_outcome(run, ended))
    for words in (
        "default/small succeeded in 6m 12s: step 60 of 60, 30,720 tokens",
        "7,040 tokens held out",
        "31.25",
        "182,331",
        "412.31",
        "30.10",
        " /runs/default/small/export",
        "/runs/loss.png",
        "checkpoint of step 60",
        "1 TeacherPhase",
        "42 to 59",
        "2 x 2",
        "2m 12s",
    ):
        assert words in text


def test_the_outcome_of_a_run_that_failed_says_why(run: BitNetRun, ledger: Plan) -> None:
    failed = segment(
        ledger,
        outcome=SegmentOutcome.FAILED,
        exit_reason="TeacherUnavailable",
        last_step=0,
        ended_at="2026-01-01T00:00:09Z",
    )
    why = Condition(
        type="Failed",
        status="True",
        reason="TeacherUnavailable",
        message="/model holds no teacher",
        observed_generation=1,
        last_transition_time="2026-01-01T00:00:09Z",
    )
    text = shown(render_outcome(run, status(failed, phase=RunPhase.FAILED, conditions=(why,))))
    assert "default/small failed in 9s" in text
    assert "/model holds no teacher" in text
    assert "TeacherUnavailable" in text
    assert "nothing yet" in text
    assert "perplexity" not in text


def test_the_outcome_of_a_run_that_was_stopped_says_how_it_goes_on(run: BitNetRun, ledger: Plan) -> None:
    stopped = status(segment(ledger), phase=RunPhase.SUSPENDED, checkpoint_step=20)
    assert "The same command goes on from step 20." in shown(render_outcome(run, stopped))


def test_the_outcome_of_a_classifier_speaks_of_accuracy(run: BitNetRun) -> None:
    evaluation = Evaluation(examples=1200, accuracy_before="0.5", accuracy_after="0.91275")
    ended = status(phase=RunPhase.SUCCEEDED, evaluation=evaluation)
    text = shown(render_outcome(run, ended))
    for words in ("accuracy on 1,200 examples held out", "50.00%", "91.28%"):
        assert words in text
    assert "perplexity" not in text
    assert "full precision" not in text
