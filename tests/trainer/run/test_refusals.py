"""What a run that is not quite the one before, or that lost something on the way, says and leaves."""

import errno
import shutil

import pytest
from tokenizers import AddedToken

from bitnet_crds.protocol import ExitCode, Order, Progress
from bitnet_trainer.errors import BadInput, ModelUnavailable, TeacherUnavailable
from bitnet_trainer.outcome import exit_code_of, failure_report, with_newest_checkpoint


def changed(run, **parts):
    """The same run of the same name, with parts of its spec replaced."""
    spec = run.order.spec.model_copy(update=parts)
    order = Order(**{**dict(run.order), "spec": spec})
    return type(run)(run.root, order)


def another_model(run):
    shutil.copytree(run.root / "teacher", run.root / "another")
    return {"model": run.order.spec.model.model_copy(update={"from_": f"file://{run.root}/another"})}


def another_teacher(run):
    shutil.copytree(run.root / "model", run.root / "another")
    return {"teacher": run.order.spec.teacher.model_copy(update={"from_": f"file://{run.root}/another"})}


def more_decay(run):
    return {"optimizer": run.order.spec.optimizer.model_copy(update={"weight_decay": 0.5})}


def another_temperature(run):
    *others, last = run.order.spec.phases
    logits = last.objectives.teacher_logits.model_copy(update={"temperature": 3.0})
    objectives = last.objectives.model_copy(update={"teacher_logits": logits})
    return {"phases": (*others, last.model_copy(update={"objectives": objectives}))}


@pytest.mark.parametrize("change", [another_model, another_teacher, more_decay, another_temperature])
def test_a_checkpoint_of_another_run_is_refused_and_what_it_left_stays(make_run, train_here, change):
    run = make_run()
    train_here(run, stop_at=2)
    record = (run.folder / "run.json").read_bytes()
    with pytest.raises(BadInput, match="Undo that change"):
        train_here(changed(run, **change(run)))
    assert (run.folder / "run.json").read_bytes() == record


def test_a_resumed_run_says_at_once_how_far_it_is(make_run, train_here):
    run = make_run()
    train_here(run, stop_at=5)
    _, reporter = train_here(run)
    known = [progress for progress in reporter.seen if progress.checkpoint is not None]
    assert min(progress.step for progress in known) == 5
    assert {progress.phase for progress in known} == {"main", "distill"}


def test_a_request_in_the_last_step_stops_before_the_export(make_run, train_here):
    run = make_run()
    result, _ = train_here(run, stop_at=12)
    assert result.stopped
    assert not (run.folder / "export").exists()
    assert train_here(run)[0].artifacts


def test_a_teacher_that_is_gone_when_training_is_over_costs_its_figure_alone(make_run, train_here):
    spec = make_run().order.spec
    first, main, last = spec.phases
    # The teacher is needed in the first phase only.
    phases = (
        first.model_copy(update={"objectives": last.objectives}),
        main,
        last.model_copy(update={"objectives": main.objectives}),
    )
    run = make_run(phases=[phase.model_dump(by_alias=True, exclude_none=True) for phase in phases])
    train_here(run, stop_at=12)
    shutil.rmtree(run.root / "teacher")
    result, _ = train_here(run)
    assert result.evaluation.perplexity_teacher is None
    assert (run.folder / "export/huggingface/config.json").is_file()


def test_text_with_tokens_that_the_model_does_not_know_is_refused(make_run, train_here, tokenizer):
    run = make_run()
    tokenizer.add_tokens([AddedToken("unheard")])
    tokenizer.save_pretrained(run.root / "model")
    with (run.root / "counting.txt").open("a") as text:
        text.write(" unheard w2 w3")
    with pytest.raises(ModelUnavailable, match="makes token 61 of the text, and the model knows 61 tokens"):
        train_here(run)
    assert not (run.folder / "checkpoints").exists()


def test_text_with_tokens_that_the_teacher_does_not_know_is_refused(
    make_run, make_model, train_here, tokenizer
):
    """The student's vocabulary may have more, of which nobody asks the teacher unless the text has them."""
    run = make_run(steps=4)
    make_model(vocab_size=62).save_pretrained(run.root / "model")
    tokenizer.add_tokens([AddedToken("unheard")])
    tokenizer.save_pretrained(run.root / "model")
    with (run.root / "counting.txt").open("a") as text:
        text.write(" unheard w2 w3")
    with pytest.raises(TeacherUnavailable, match=r"has token 61, and the teacher .* knows 61 tokens"):
        train_here(run)


def test_a_teacher_with_the_same_tokens_in_another_order_is_refused(make_run, train_here):
    run = make_run()
    words = (run.root / "teacher/tokenizer.json").read_text()
    swapped = words.replace('"w2": 2', '"w2": 3').replace('"w3": 3', '"w3": 2')
    assert swapped != words
    (run.root / "teacher/tokenizer.json").write_text(swapped)
    with pytest.raises(TeacherUnavailable, match=r"has token 'w[23]' at"):
        train_here(run)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_fault_anywhere_is_the_checkpoint_folders(number):
    error = OSError(number, "what the system says", "/runs/run.json")
    assert exit_code_of(error) == ExitCode.CHECKPOINT_UNAVAILABLE
    message = failure_report(error, 0, Progress(total_steps=9, phase="main")).message
    assert "/runs/run.json cannot be written (what the system says)" in message


def test_being_stopped_before_training_is_said_in_words():
    report = failure_report(SystemExit(143), 0, Progress(total_steps=9, phase="main", state="LoadingModel"))
    assert report.exit_code == ExitCode.PREEMPTED
    assert "asked to stop while LoadingModel" in report.message


def test_a_folder_that_may_not_be_entered_leaves_the_report_as_it_is(make_run, monkeypatch):
    run = make_run()
    report = failure_report(BadInput("wrong"), 0, Progress(total_steps=9, phase="main"))

    def forbidden(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.is_dir", forbidden)
    assert with_newest_checkpoint(report, run.order) == report
