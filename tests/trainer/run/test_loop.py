"""The loop, run whole on a tiny model: phases, the teacher, the held batch, and what is left behind."""

import json
from importlib.metadata import version

import pytest
import torch
from transformers import AutoModelForCausalLM

from bitnet_crds.protocol import ExitCode, TeacherState, TrainerState
from bitnet_trainer import finish
from bitnet_trainer.errors import (
    BadInput,
    CheckpointError,
    DataUnavailable,
    ModelUnavailable,
    TeacherUnavailable,
)
from bitnet_trainer.evaluate import negative_log_likelihood
from bitnet_trainer.outcome import exit_code_of
from bitnet_trainer.record import revision
from bitnet_trainer.step import Stepper
from measuring import perplexity


def test_a_run_goes_through_its_phases_and_leaves_everything(make_run, train_here):
    run = make_run(steps=12)
    result, reporter = train_here(run)

    assert not result.stopped
    assert [record.step for record in run.metrics()] == list(range(1, 13))
    assert [record.phase for record in run.metrics()] == ["warmup"] * 3 + ["main"] * 6 + ["distill"] * 3
    assert run.checkpoints() == ["step-00000010", "step-00000012"]
    assert set(result.artifacts) == {"HuggingFace", "LossPlot"}
    assert (run.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((run.folder / "run.json").read_text())
    assert record["ledgerHash"] == run.order.plan.ledger_hash
    assert record["versions"]["torch"] == version("torch")
    assert record["spec"]["budget"] == {"tokens": 1536, "globalBatchSize": 8}
    assert record["plan"]["totalSteps"] == 12
    assert record["model"] == f"{run.root}/model"
    assert len(record["dataFingerprint"]) >= 16
    assert record["revision"] == revision()
    assert [state for state in TrainerState if state in {seen.state for seen in reporter.seen}] == [
        state for state in TrainerState if state is not TrainerState.STARTING
    ]


def test_training_helps_and_perplexity_is_of_the_quantised_model(make_run, train_here):
    run = make_run(steps=40)
    result, _ = train_here(run)
    found = result.evaluation
    assert found is not None
    assert float(found.perplexity_after) < 0.8 * float(found.perplexity_before)
    assert found.perplexity_teacher is not None
    first, last = run.metrics()[0], run.metrics()[29]
    assert last.objectives["crossEntropy"].raw < 0.9 * first.objectives["crossEntropy"].raw


def test_loss_is_the_weighted_sum_of_what_the_phase_names(make_run, train_here):
    """Trap 5, the part that is here: an objective that a phase does not name does not run in it."""
    run = make_run(steps=12)
    train_here(run)
    for record in run.metrics():
        named = {"crossEntropy", "teacherLogits"} if record.phase == "distill" else {"crossEntropy"}
        assert set(record.objectives) == named
        assert record.loss == pytest.approx(sum(part.weighted for part in record.objectives.values()))


def test_rate_and_lambda_are_the_ledgers_at_every_step(make_run, train_here):
    """Trap 3: the horizon is the ledger's own, so the rate is above 0 up to the last step."""
    run = make_run(steps=12)
    train_here(run)
    plan = run.order.plan
    for record in run.metrics():
        assert record.learning_rate == plan.learning_rate.at(record.step - 1) > 0
        assert record.quantization_lambda == plan.quantization_lambda.at(record.step - 1)


def test_the_teacher_comes_with_its_phase_and_the_global_batch_holds(make_run, train_here, monkeypatch):
    """Trap 8: the micro batch halves, accumulation doubles, tokens a step stay: by the data cursor, and by
    what is trained on."""
    trained = []
    real = Stepper.__call__

    def step(self, given, weights):
        trained.append([tuple(rows.input_ids.shape) for rows in given.micro_batches])
        return real(self, given, weights)

    monkeypatch.setattr(Stepper, "__call__", step)
    checkpoint = make_run().order.spec.checkpoint.model_dump(by_alias=True) | {"everySteps": 1, "keep": 12}
    run = make_run(steps=12, checkpoint=checkpoint)
    _, reporter = train_here(run)
    shapes = {record.phase: (record.micro_batch_size, record.accumulation) for record in run.metrics()}
    assert shapes == {"warmup": (4, 2), "main": (4, 2), "distill": (2, 4)}
    assert trained == [[(4, 16)] * 2] * 9 + [[(2, 16)] * 4] * 3
    folders = [run.folder / "checkpoints" / name for name in run.checkpoints()]
    consumed = [json.loads((folder / "position.json").read_text())["consumed"] for folder in folders]
    assert [sum(each) * 16 for each in consumed] == [record.tokens for record in run.metrics()]
    assert [sum(each) for each in consumed] == [8 * step for step in range(1, 13)]
    loading = next(seen for seen in reporter.seen if seen.teacher is TeacherState.LOADING)
    assert loading.step == 9
    assert reporter.progress.teacher is TeacherState.READY


@pytest.mark.parametrize("breakage", ["absent", "other vocabulary"])
def test_a_teacher_that_cannot_be_had_ends_the_run(make_run, train_here, breakage):
    """Trap 7: training never goes on without it."""
    run = make_run(steps=12)
    if breakage == "absent":
        (run.root / "teacher" / "model.safetensors").unlink()
    else:
        words = run.root / "teacher" / "tokenizer.json"
        words.write_text(words.read_text().replace('"w5"', '"w1000"'))
    with pytest.raises(TeacherUnavailable) as caught:
        train_here(run)
    assert exit_code_of(caught.value) == ExitCode.TEACHER_UNAVAILABLE
    assert max(record.step for record in run.metrics()) == 9


def test_a_resumed_run_loads_the_teacher_at_once_where_its_phase_has_begun(make_run, train_here):
    run = make_run(steps=12)
    train_here(run)
    newest = run.folder / "checkpoints" / "step-00000012"
    (newest / "COMMITTED").unlink()
    _, reporter = train_here(run)
    ready = next(seen for seen in reporter.seen if seen.teacher is TeacherState.READY)
    assert ready.checkpoint is not None
    assert ready.checkpoint.step == 10
    assert ready.step < 11
    assert [record.step for record in run.metrics()] == list(range(1, 13))


def test_a_request_to_stop_ends_the_step_and_writes_a_checkpoint(make_run, train_here):
    run = make_run(steps=12)
    result, reporter = train_here(run, stop_at=7)
    assert result.stopped
    assert result.evaluation is None
    assert reporter.progress.checkpoint.step == 7
    assert 0 < reporter.progress.checkpoint_seconds < 60
    assert reporter.progress.machine.step_seconds > 0
    assert run.checkpoints() == ["step-00000005", "step-00000007"]


def test_stock_transformers_loads_what_was_trained(make_run, train_here, monkeypatch):
    """Two programs may turn a code at a tie two ways: logits differ at that token then, and at those that see
    it. A weight that differs is seen everywhere.
    """
    measured = []

    def measuring(model, *others):
        measured.append(model)
        return negative_log_likelihood(model, *others)

    monkeypatch.setattr(finish, "negative_log_likelihood", measuring)
    run = make_run(steps=12)
    result, _ = train_here(run)
    _published, _untrained, trained, _teacher = measured
    stock = AutoModelForCausalLM.from_pretrained(result.artifacts["HuggingFace"])
    held_out = run.held_out()
    with torch.no_grad():
        apart = (stock(held_out).logits - trained(input_ids=held_out).logits).abs().amax(dim=-1)
    assert (apart < 1e-4).float().mean() > 0.5
    reported = float(result.evaluation.perplexity_after)
    assert perplexity(stock, held_out).value == pytest.approx(reported, rel=1e-3)


def test_bad_input_is_refused_before_anything_is_made(make_run, train_here):
    run = make_run()
    (run.root / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match="model"):
        train_here(run)
    assert not run.folder.exists()


def test_an_empty_text_names_itself(make_run, train_here):
    run = make_run()
    (run.root / "counting.txt").write_text(" \n")
    with pytest.raises(DataUnavailable, match=r"counting.*holds no text"):
        train_here(run)
    assert not run.folder.exists()


def test_a_checkpoint_folder_that_cannot_be_written_is_found_before_the_model_is_loaded(make_run, train_here):
    run = make_run()
    (run.root / "runs").write_text("a file where the folder should be")
    (run.root / "model" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint\.uri.*cannot be written"):
        train_here(run)


def test_a_run_that_asks_for_gpus_never_trains_on_the_cpu(make_run, train_here, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    tiny = make_run(gpus=1)
    with pytest.raises(BadInput, match="gpusPerWorker is 1, which takes 1 GPUs here, and 0 can be seen"):
        train_here(tiny)
    assert not tiny.folder.exists()


def test_other_ranks_than_the_ledger_planned_for_are_refused(make_run, train_here):
    """Trap 2: steps are worked out for a world size, so another one may not train them."""
    with pytest.raises(BadInput, match="planned for 2 ranks and 1 were started"):
        train_here(make_run(workers=2))


def test_a_checkpoint_of_another_ledger_is_not_gone_on_from(make_run, train_here):
    train_here(make_run(steps=12))
    with pytest.raises(BadInput, match=r"written under ledger .* and this run's is"):
        train_here(make_run(steps=16))
