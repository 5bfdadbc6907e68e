"""What `bitnetctl` says of what befell a run: why segments ended, and what changed its ledger."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from bitnet_crds import ExitCode
from bitnet_crds.protocol import Fault
from bitnet_operator.live import LiveView
from bitnet_operator.outcome import render_outcome


def shown(scene: Any) -> str:
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(render_outcome(scene.run, scene.status))
    return console.export_text()


def test_roll_backs_and_halvings_are_told_with_the_segments_that_they_ended(scene) -> None:
    scene.decide()
    fault = Fault(first_step=5, steps=2)
    scene.decide(scene.failed(scene.ended(ExitCode.NON_FINITE, 4, fault=fault, checkpoints=(4, 2))))
    scene.decide()
    scene.decide(scene.failed(scene.ended(ExitCode.OUT_OF_MEMORY, 4, step=7)))
    text = shown(scene)
    for words in (
        "back to step 4: losses were not finite; 2 batches from 5 on passed over, learning rates lowered",
        "distill: memory ran out, and the micro batch was halved 1 time",
        "1 Rollback",
        "NonFinite",
        "2 TeacherPhase",
        "OutOfMemory",
    ):
        assert words in text


def test_a_segment_that_the_operator_ended_says_why(scene) -> None:
    scene.decide()
    scene.change(workers=scene.document["spec"]["workers"] | {"count": 1})
    scene.decide(scene.says(3, 2))
    assert "to end: SpecChanged" in shown(scene)
    scene.decide(scene.failed(scene.ended(ExitCode.PREEMPTED, 3)))
    assert "SpecChanged" in shown(scene)
    assert "to end" not in shown(scene)


def test_a_run_that_waits_says_for_what(scene) -> None:
    scene.decide()
    assert "segment 0 Start waits for its pods" in shown(scene)


def test_a_run_that_trains_says_what_its_trainer_warns_of(scene) -> None:
    """Such as that its checkpoints are not where the table of places has them."""
    scene.decide()
    scene.decide(scene.says(3, 2, warnings=("GCS disabled: checkpoints stay on /here.",)))
    assert "phase main. GCS disabled: checkpoints stay on /here." in shown(scene)


@pytest.fixture
def tuned(make_scene: Callable[..., Any]) -> Any:
    scene = make_scene(teacher={"from": "file:///models/teacher", "tune": {"tokens": 16 * 8 * 5}})
    scene.decide()
    return scene


def test_the_tuning_has_steps_of_its_own(tuned) -> None:
    console = Console(width=120, file=io.StringIO(), record=True)
    job = tuned.says(3, 2, phase="tuning", total_steps=5)
    with LiveView(tuned.run, console) as view:
        view.update(tuned.decide(job).status, job.progress)
        tuned.decide(tuned.succeeded(tuned.ended(0, 5, artifacts={"Teacher": "file:///runs/teacher"})))
        tuned.decide()
        job = tuned.says(1)
        view.update(tuned.status, job.progress)
    text = console.export_text()
    for words in (
        "segment 0 (TeacherTuning): the teacher is tuned, steps 0 to 4",
        "step 3/5, phase tuning",
        "teacher being tuned",
        "segment 1 (Start): steps 0 to 5",
    ):
        assert words in text
    assert "tuned teacher, in full precision" in shown(tuned)


def test_what_befell_it_is_a_line_once_and_the_ledger_follows(scene) -> None:
    console = Console(width=160, file=io.StringIO(), record=True)
    scene.decide()
    with LiveView(scene.run, console) as view:
        scene.decide(scene.failed(scene.ended(ExitCode.OUT_OF_MEMORY, 2, step=3)))
        for _ in range(2):
            view.update(scene.status, None)
        scene.decide()
        view.update(scene.status, None)
    lines = console.export_text().splitlines()
    assert lines.count("main: memory ran out, and the micro batch was halved 1 time") == 1
    assert "segment 1 (OutOfMemory): steps 2 to 9, micro batch 2 x accumulation 2" in lines
