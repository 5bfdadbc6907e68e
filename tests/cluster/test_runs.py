"""Runs on a real cluster: to the end, with a killed rank, an operator that was away, deleted, refused."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from local_cluster import CommandFailed, Kubectl
from operator_under_test import OperatorProcess
from runs import Document, WatchedRun, said_of

pytestmark = pytest.mark.cluster


def test_two_workers_train_through_the_teacher_phase_to_the_end(
    start: Callable[..., WatchedRun], operator: OperatorProcess, data: Path, namespace: str
) -> None:
    run = start("through", steps=20)
    run.wait_until(lambda status: status.get("step", 0) >= 1, "first step")
    assert f'bitnetrun_loss{{name="through",namespace="{namespace}"}}' in operator.metrics()

    status = run.succeeded()

    assert said_of(status["segments"]) == [("Start", "Completed"), ("TeacherPhase", "Completed")]
    before, after = (segment["shape"] for segment in status["segments"])
    assert (before["workers"], before["microBatchSize"], before["accumulation"]) == (2, 2, 1)
    assert (after["workers"], after["microBatchSize"], after["accumulation"]) == (2, 1, 2)
    assert (status["step"], status["totalSteps"]) == (20, 20)
    assert status["segments"][0]["lastStep"] == status["segments"][1]["firstStep"] == 12
    # Perplexity is whatever it is, but training on quantised weights must have helped.
    figures = status["evaluation"]
    assert float(figures["perplexityAfter"]) < float(figures["perplexityBefore"])
    exported = data / Path(status["artifacts"]["HuggingFace"].removeprefix("file://")).relative_to("/data")
    assert (exported / "config.json").is_file()
    assert [event["reason"] for event in run.events()] == ["Start", "TeacherPhase", "Succeeded"]
    steps = [
        json.loads(line)
        for line in (data / f"runs-{namespace}" / namespace / "through/metrics.jsonl")
        .read_text()
        .splitlines()
    ]
    assert [step["step"] for step in steps] == list(range(1, 21))
    assert len({step["tokens"] - 64 * step["step"] for step in steps}) == 1  # tokens a step never change


@pytest.mark.thorough
def test_a_rank_killed_with_sigkill_is_retried_from_the_checkpoint(
    start: Callable[..., WatchedRun], watched: Callable[[WatchedRun], Any]
) -> None:
    run = start("killed", steps=2000, every_steps=5)
    with watched(run):
        failed = run.retried_after_sigkill()
    assert "SIGKILL" in failed["message"]


def test_an_operator_that_was_away_finds_the_run_as_it_is(
    start: Callable[..., WatchedRun], operator: OperatorProcess
) -> None:
    # The teacher's phase begins after 33 s: later than the killed operator's lease ends.
    run = start("alone", steps=70, step_seconds=0.8, workers={"count": 1})
    before = run.wait_until(lambda status: status.get("step", 0) >= 5, "first steps")
    operator.stop(signal.SIGKILL)
    jobs = run.jobs()
    time.sleep(5)
    operator.start()
    run.wait_until(lambda status: status["step"] > before["step"] + 20, "steps seen again")
    status = run.succeeded()
    assert run.jobs() == jobs == ["alone-0"]
    assert said_of(status["segments"]) == [("Start", "Completed"), ("TeacherPhase", "Completed")]
    assert [event["reason"] for event in run.events()] == ["Start", "TeacherPhase", "Succeeded"]


def test_what_belongs_to_a_deleted_run_goes_with_it_and_what_it_keeps_stays(
    start: Callable[..., WatchedRun], operator: OperatorProcess, kubectl: Kubectl, data: Path, namespace: str
) -> None:
    run = start("deleted", steps=2000, every_steps=2)
    run.wait_until(lambda status: status.get("checkpointStep", 0) >= 2, "first checkpoint")
    assert run.children()
    kubectl("delete", "bnr", "deleted", "-n", namespace, timeout=60)
    deadline = time.monotonic() + 60
    while run.children() or not run.gone():
        assert time.monotonic() < deadline, run.children()
        time.sleep(0.5)
    assert f'name="deleted",namespace="{namespace}"' not in operator.metrics()
    assert (data / f"runs-{namespace}" / namespace / "deleted/run.json").is_file()


@pytest.mark.parametrize("backend", ["PyTorchJob", pytest.param("Job", marks=pytest.mark.thorough)])
def test_what_a_deleted_run_keeps_goes_with_it_where_the_run_says_so(
    start: Callable[..., WatchedRun],
    kubectl: Kubectl,
    data: Path,
    namespace: str,
    backend: str,
    measured: Callable[[str], None],
) -> None:
    checkpoint = {"uri": f"file:///data/runs-{namespace}", "everySteps": 2, "onDelete": "Remove"}
    run = start("tidy", steps=2000, backend=backend, checkpoint=checkpoint, workers={"count": 1})
    run.wait_until(lambda status: status.get("checkpointStep", 0) >= 2, "first checkpoint")
    folder = data / f"runs-{namespace}" / namespace / "tidy"
    beside = folder.with_name("tidy2")
    beside.mkdir()
    assert (folder / "run.json").is_file()
    began = time.monotonic()
    # In the foreground: all that the run owns goes before it does.
    kubectl("delete", "bnr", "tidy", "-n", namespace, "--cascade=foreground", timeout=240)
    measured(f"run, pods and all that it kept are gone after {time.monotonic() - began:.0f} s")
    assert run.gone()
    assert not folder.exists()
    assert beside.exists()
    deadline = time.monotonic() + 60
    while run.children():
        assert time.monotonic() < deadline, run.children()
        time.sleep(0.5)
    assert "CheckpointsRemoved" in [event["reason"] for event in run.events()]


@pytest.mark.thorough
def test_a_removal_that_cannot_be_is_told_and_a_person_gives_it_up(
    start: Callable[..., WatchedRun], kubectl: Kubectl, data: Path, namespace: str
) -> None:
    checkpoint = {"uri": f"file:///data/runs-{namespace}", "everySteps": 10, "onDelete": "Remove"}
    run = start("bound", steps=2000, checkpoint=checkpoint, workers={"count": 1})
    run.wait_until(lambda status: status.get("checkpointStep", 0) >= 10, "first checkpoint")
    folder = data / f"runs-{namespace}" / namespace / "bound"
    moved = folder.with_name("moved")
    folder.rename(moved)
    folder.symlink_to(moved.name)
    kubectl("delete", "bnr", "bound", "-n", namespace, "--wait=false")
    deadline = time.monotonic() + 240
    while not (failed := [event for event in run.events() if event["reason"] == "RemovalFailed"]):
        assert time.monotonic() < deadline, run.events()
        time.sleep(0.5)
    assert "it is a link" in failed[0]["message"]
    assert not run.gone()
    keep = json.dumps({"spec": {"checkpoint": {"onDelete": "Keep"}}})
    kubectl("patch", "bnr", "bound", "-n", namespace, "--type=merge", "-p", keep)
    while run.children() or not run.gone():
        assert time.monotonic() < deadline, run.children()
        time.sleep(0.5)
    assert (moved / "run.json").is_file()


def test_a_failed_pods_own_words_end_in_the_status(start: Callable[..., WatchedRun]) -> None:
    run = start("teacherless", steps=20, teacher={"from": "file:///data/nowhere"}, workers={"count": 1})
    status = run.failed()
    (last,) = [segment for segment in status["segments"] if segment["outcome"] == "Failed"]
    assert (last["exitCode"], last["exitReason"]) == (4, "TeacherUnavailable")
    assert "/data/nowhere" in last["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budgett": {"tokens": 1}}, 'unknown field "spec.budgett"'),
        ({"teacher": None}, "teacher"),
        ({"budget": {"tokens": 100_000, "globalBatchSize": 5}}, "globalBatchSize"),
    ],
)
def test_a_wrong_run_is_refused_and_nothing_is_made(
    start: Callable[..., WatchedRun], kubectl: Kubectl, namespace: str, change: Document, words: str
) -> None:
    with pytest.raises(CommandFailed, match=words):
        start("wrong", steps=10, **change)
    assert WatchedRun(kubectl, namespace, "wrong").gone()


def test_a_template_that_the_server_refuses_fails_the_run_with_the_servers_words(
    start: Callable[..., WatchedRun],
) -> None:
    workers = {
        "count": 1,
        "gpusPerWorker": 0,
        "microBatchSize": 2,
        "template": {"spec": {"containers": [{"name": "pytorch", "image": 5}]}},
    }
    run = start("untenable", steps=10, workers=workers)
    status = run.failed()
    (failed,) = [each for each in status["conditions"] if each["type"] == "Failed"]
    assert failed["reason"] == "ChildRefused"
    assert run.jobs() == []
