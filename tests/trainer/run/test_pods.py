"""Pods that train a part of a run: where a phase begins in others, and where a run ends before its budget."""

import json
from dataclasses import replace

import pytest

from bitnet_crds import Adjustments, plan
from bitnet_crds.protocol import PHASE_BOUNDARY, ExitCode
from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.errors import BadInput, CheckpointError

ALONE = {"crossEntropy": {"weight": 1}}
BARELY = {"lambdaWarmup": {"steps": 1000}}
"""Two ranks add gradients up in another order, and a ternary code at a tie may turn. That moves a loss by
next to nothing where lambda is next to nothing."""
DISTILLED = {"crossEntropy": {"weight": 0.5}, "teacherLogits": {"weight": 1, "temperature": 2}}


def phases(**distill):
    """Steps 0 to 3 without the teacher, 4 to 7 with it, 8 to 11 without."""
    return [
        {"name": "alone", "until": "34%", "objectives": ALONE},
        {"name": "distill", "until": "67%", "objectives": DISTILLED, **distill},
        {"name": "again", "until": "100%", "objectives": ALONE},
    ]


@pytest.fixture
def rescaled(make_run):
    """Makes a run that distils in two pods, and trains in one before and after; its job begins at a step."""

    def make(first_step, name="rescaled", **changes):
        teacher = {"from": f"file://{make_run().root}/teacher", "resize": "Rescale"}
        run = make_run(
            steps=12,
            name=name,
            phases=phases(workers={"count": 2}),
            teacher=teacher,
            every_steps=3,
            **changes,
        )
        return replace(run, order=run.order.model_copy(update={"first_step": first_step}))

    return make


def test_one_two_and_one_ranks_train_what_one_job_does(make_run, rescaled, train_here, ended):
    """Trap 8, over pods that follow each other: no step is lost or repeated, and no sequence."""
    whole = make_run(steps=12, name="whole", phases=phases(), quantization=BARELY)
    train_here(whole)

    before = rescaled(0, quantization=BARELY)
    result, reporter = train_here(before)
    assert (result.boundary, result.evaluation, reporter.progress.begun_step) == (True, None, 0)
    assert "phase 'alone' ended at step 4" in result.message
    assert before.checkpoints()[-1] == "step-00000004"

    pods = rescaled(4, quantization=BARELY)
    assert ended(pods.launch()) == ExitCode.SUCCEEDED
    word = pods.last_word()
    assert (word.reason, word.step, word.checkpoint.step) == (PHASE_BOUNDARY, 8, 8)
    assert word.checkpoints == (8, 6)
    assert (word.evaluation, word.artifacts) == (None, {})

    after = rescaled(8, quantization=BARELY)
    result, reporter = train_here(after)
    assert (result.boundary, result.stopped, reporter.progress.begun_step) == (False, False, 8)
    assert result.evaluation is not None

    found, expected = after.metrics(), whole.metrics()
    assert [(record.step, record.world_size) for record in found] == [
        (step, 2 if 4 < step <= 8 else 1) for step in range(1, 13)
    ]
    assert {record.micro_batch_size * record.accumulation * record.world_size for record in found} == {8}
    assert [record.loss for record in found] == pytest.approx([record.loss for record in expected], abs=1e-5)
    positions = [
        json.loads((run.folder / "checkpoints" / "step-00000012" / "position.json").read_text())
        for run in (whole, after)
    ]
    assert positions[0]["consumed"] == positions[1]["consumed"]
    assert sum(positions[1]["consumed"]) == 12 * 8


def test_pods_of_another_phase_than_the_checkpoints_end_at_once(rescaled, train_here):
    """As where the newest checkpoint, which they were made for, is not sound."""
    train_here(rescaled(0))
    result, reporter = train_here(rescaled(8))
    assert result.boundary
    assert "phase 'distill' trains in 2 ranks" in result.message
    assert (reporter.progress.step, reporter.progress.checkpoint.step) == (4, 4)
    assert [record.step for record in rescaled(8).metrics()] == [1, 2, 3, 4]


def test_pods_that_an_older_checkpoint_fits_train_up_to_their_phase(rescaled, train_here):
    train_here(rescaled(0), stop_at=2)
    result, reporter = train_here(rescaled(8))
    assert result.boundary
    assert (reporter.progress.begun_step, reporter.progress.step) == (2, 4)


def test_more_or_fewer_ranks_than_the_phase_has_are_refused(rescaled, train_here):
    with pytest.raises(BadInput, match="phase 'distill' is planned for 2 ranks and 1 were started"):
        train_here(rescaled(4))


def test_pods_of_a_later_phase_do_not_begin_the_run_anew(make_run, train_here):
    """All checkpoints are gone, and the first phase trains in others."""
    wide = [
        {**phase, "workers": {"count": 2}} if number == 0 else phase for number, phase in enumerate(phases())
    ]
    teacher = {"from": f"file://{make_run().root}/teacher", "resize": "Rescale"}
    run = make_run(steps=12, phases=wide, teacher=teacher)
    run = replace(run, order=run.order.model_copy(update={"first_step": 8}))
    with pytest.raises(CheckpointError, match="made for step 8, and there is no checkpoint"):
        train_here(run)


@pytest.mark.parametrize("transient", [False, True])
def test_a_phase_ends_well_only_with_a_checkpoint(rescaled, train_here, monkeypatch, transient):
    """Even where training would go on without: other pods could not."""

    def full(*_):
        raise CheckpointError("the disk is full.", transient=transient)

    monkeypatch.setattr(LocalStore, "commit", full)
    checkpoint = {"uri": f"file://{rescaled(0).root}/runs", "everySteps": 3, "required": False}
    with pytest.raises(CheckpointError, match="step 4, where phase 'alone' ends") as error:
        train_here(rescaled(0, checkpoint=checkpoint))
    assert error.value.transient is transient


@pytest.mark.parametrize(("stopped_at", "trained"), [(None, 7), (9, 9)])
def test_a_run_that_ends_early_is_evaluated_and_exported_there(make_run, train_here, stopped_at, trained):
    """The rate goes on as it was planned. What was trained beyond, before the end was known, stays."""
    run = make_run(steps=12)
    if stopped_at is not None:
        train_here(run, stop_at=stopped_at)
    spec = run.order.spec
    run = replace(run, order=run.order.model_copy(update={"plan": plan(spec, Adjustments(end_step=7))}))
    result, reporter = train_here(run)
    assert (result.stopped, result.boundary) == (False, False)
    assert result.message.startswith(f"trained {trained} steps, {trained * 8 * 16:,} tokens")
    assert reporter.progress.step == trained
    assert reporter.progress.checkpoint.step == trained
    assert result.evaluation is not None
    assert {"HuggingFace", "LossPlot"} == result.artifacts.keys()
    assert [record.step for record in run.metrics()] == list(range(1, trained + 1))
    assert run.metrics()[5].learning_rate == plan(spec).learning_rate.at(5)
    # Once more, as where its pods were lost while they evaluated.
    again, _ = train_here(run)
    assert (again.message, run.metrics()[-1].step) == (result.message, trained)
