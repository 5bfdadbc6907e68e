"""What rank 0 tells: over HTTP, in metrics.jsonl, and as its last word."""

import json
import urllib.error
import urllib.request

import pytest
import torch
import torch.distributed as dist

from bitnet_crds.plan import plan
from bitnet_crds.protocol import (
    ExitCode,
    Fault,
    ObjectiveProgress,
    Progress,
    TerminationReport,
    TrainerState,
)
from bitnet_crds.spec import BitNetRunSpec
from bitnet_trainer import errors, outcome
from bitnet_trainer.plot import plot_loss
from bitnet_trainer.report import MetricsLog, Reporter, StepRecord, read_metrics

PROGRESS = Progress(
    state=TrainerState.TRAINING,
    step=3,
    total_steps=10,
    phase="main",
    loss=2.5,
    skipped_steps=2,
    loss_spikes=1,
    objectives={"crossEntropy": ObjectiveProgress(raw=5.0, weight=0.5, weighted=2.5)},
)


def record(step: int, **changes) -> StepRecord:
    fields = {
        "phase": "main",
        "loss": 9.0 - step / 10,
        "objectives": {
            "crossEntropy": ObjectiveProgress(raw=9.0 - step / 10, weight=1, weighted=9.0 - step / 10)
        },
        "gradient_norm": 1.0,
        "learning_rate": 1e-3,
        "quantization_lambda": 0.5,
        "tokens": step * 128,
        "tokens_per_second": 100.0,
        "skipped_steps": 0,
        "micro_batch_size": 4,
        "accumulation": 2,
        "world_size": 1,
        "teacher": False,
    }
    return StepRecord(step=step, **{**fields, **changes})


@pytest.fixture
def serving(monkeypatch):
    monkeypatch.setenv("BITNET_HOST", "127.0.0.1")
    monkeypatch.setenv("BITNET_PORT", "0")
    reporter = Reporter(PROGRESS)
    reporter.serve()
    yield reporter
    reporter.close()


def get(reporter: Reporter, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{reporter.port}{path}") as answer:
        return answer.read().decode()


def test_progress_is_answered_as_the_operator_reads_it(serving):
    assert Progress.model_validate_json(get(serving, "/progress")) == PROGRESS
    serving.update(step=4, loss=2.0)
    assert json.loads(get(serving, "/progress"))["step"] == 4
    assert get(serving, "/healthz") == "ok\n"


def test_metrics_are_in_prometheus_format(serving):
    lines = get(serving, "/metrics").splitlines()
    assert "bitnet_trainer_step 3.0" in lines
    assert "bitnet_trainer_loss 2.5" in lines
    assert "bitnet_trainer_skipped_steps_total 2.0" in lines
    assert "bitnet_trainer_loss_spikes_total 1.0" in lines
    assert 'bitnet_trainer_objective_loss{objective="crossEntropy"} 5.0' in lines
    assert 'bitnet_trainer_objective_weight{objective="crossEntropy"} 0.5' in lines
    assert 'bitnet_trainer_phase{phase="main"} 1.0' in lines
    assert not any("tokens_per_second" in line for line in lines)


def test_other_paths_are_not_found(serving):
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        get(serving, "/metric")
    caught.value.close()


def test_a_port_that_is_taken_says_which(serving, monkeypatch):
    monkeypatch.setenv("BITNET_PORT", str(serving.port))
    with pytest.raises(errors.BadInput, match=rf"at 127\.0\.0\.1:{serving.port} .*Set BITNET_PORT"):
        Reporter(PROGRESS).serve()


@pytest.mark.parametrize("port", ["http", "70000"])
def test_a_port_that_is_none_says_so(monkeypatch, port):
    monkeypatch.setenv("BITNET_PORT", port)
    with pytest.raises(errors.BadInput, match="Set BITNET_PORT to a free port"):
        Reporter(PROGRESS).serve()


def test_metrics_have_each_step_once_however_often_it_was_taken(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for begun, steps in ((0, range(1, 8)), (5, range(6, 9)), (5, range(6, 11))):
        log = MetricsLog(path, begun)
        for step in steps:
            log.append(record(step, learning_rate=begun + 1.0))
        log.close()
        with path.open("a") as file:
            file.write('{"step": 11, "pha')
    assert [(line.step, line.learning_rate) for line in read_metrics(path)] == [
        *((step, 1.0) for step in range(1, 6)),
        *((step, 6.0) for step in range(6, 11)),
    ]


def test_a_line_reads_back_as_it_was(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    lines = [record(1), record(2, loss=None, gradient_norm=None, objectives={}, skipped_steps=1)]
    for line in lines:
        log.append(line)
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == lines


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BadInput("x"), ExitCode.BAD_INPUT),
        (errors.ModelUnavailable("x"), ExitCode.MODEL_UNAVAILABLE),
        (errors.DataUnavailable("x"), ExitCode.DATA_UNAVAILABLE),
        (errors.TeacherUnavailable("x"), ExitCode.TEACHER_UNAVAILABLE),
        (errors.CheckpointError("x"), ExitCode.CHECKPOINT_UNAVAILABLE),
        (errors.NonFinite("x", Fault(first_step=4, steps=2)), ExitCode.NON_FINITE),
        (torch.OutOfMemoryError("x"), ExitCode.OUT_OF_MEMORY),
        (dist.DistBackendError("x"), ExitCode.PEER_LOST),
        (RuntimeError("[gloo/transport/tcp/pair.cc:545] Connection closed by peer"), ExitCode.PEER_LOST),
        (RuntimeError("size mismatch"), ExitCode.CRASHED),
        (errors.TrainerError("x"), ExitCode.CRASHED),
        (SystemExit(143), ExitCode.PREEMPTED),
    ],
)
def test_each_error_has_its_exit_code(error, code):
    report = outcome.failure_report(error, rank=1, progress=PROGRESS)
    assert (report.exit_code, report.reason, report.rank, report.step) == (code, code.label, 1, 3)
    assert not report.transient


def test_what_may_be_there_another_time_is_reported_so():
    error = errors.ModelUnavailable("the hub does not answer", transient=True)
    assert outcome.failure_report(error, 0, PROGRESS).transient


def test_every_error_of_the_package_has_an_exit_code():
    own = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.TrainerError)
    }
    assert own - {errors.TrainerError} <= set(outcome.EXIT_CODES)


def test_a_crash_is_reported_by_the_end_of_its_traceback():
    try:
        torch.zeros(2) @ torch.zeros(3)
    except RuntimeError as error:
        report = outcome.failure_report(error, 0, PROGRESS)
    assert report.message.startswith("Traceback")
    assert "inconsistent tensor size" in report.message


def test_the_last_word_fits_and_goes_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv(outcome.TERMINATION_LOG, str(tmp_path / "log"))
    outcome.publish(TerminationReport(exit_code=1, reason="Crashed", message="é" * 9000))
    written = (tmp_path / "log").read_bytes()
    assert len(written) <= 4096
    assert TerminationReport.model_validate_json(written).message.startswith("éé")


def test_reports_go_from_ranks_to_the_launcher(tmp_path, monkeypatch):
    reports = {rank: TerminationReport(exit_code=rank, reason="x", rank=rank) for rank in (0, 3)}
    outcome.leave_report(reports[0])
    monkeypatch.setenv(outcome.REPORTS, str(tmp_path))
    for report in reports.values():
        outcome.leave_report(report)
    assert outcome.collect_reports(tmp_path) == reports


def test_the_plot_is_drawn_even_of_one_step_or_of_skipped_ones(tmp_path):
    spec = BitNetRunSpec.model_validate(
        {
            "model": {"from": "file:///model"},
            "data": {"sequenceLength": 16, "sources": [{"name": "a", "uri": "file:///a.txt"}]},
            "budget": {"tokens": 16 * 8 * 10, "globalBatchSize": 8},
            "phases": [{"name": "main", "until": "100%", "objectives": {"crossEntropy": {"weight": 1}}}],
            "workers": {"microBatchSize": 8},
            "checkpoint": {"uri": "file:///runs"},
        }
    )
    skipped = [record(2, loss=None, objectives={}, skipped_steps=1), record(3, skipped_steps=1)]
    for name, records in {"one": [record(1)], "skipped": [record(1), *skipped]}.items():
        path = plot_loss(records, plan(spec), tmp_path / f"{name}.png")
        assert path.read_bytes().startswith(b"\x89PNG")
