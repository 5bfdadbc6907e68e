"""Tiny runs, healthy and sick, each with the alerts that it has to cause: what `record_series` trains."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitnet_crds.status import BitNetRunStatus
from bitnet_operator.backends.local import JobFolder
from tiny import GLOBAL_BATCH, SEQUENCE, run_document

STEP = 0.25
"""Seconds that a step takes at least: a quarter of a minute of the series."""
WINDOW = 64
"""Steps that a plateau is judged over."""


@dataclass
class Running:
    """A run while it is recorded."""

    inputs: Path
    run_folder: Path
    status: BitNetRunStatus = field(default_factory=BitNetRunStatus)
    done: set[object] = field(default_factory=set)
    """What was done to it already."""

    @property
    def job(self) -> JobFolder:
        """Of the last segment."""
        return JobFolder(self.run_folder / "jobs" / self.status.segments[-1].job)

    @property
    def trains(self) -> bool:
        """Whether the processes of the last segment live."""
        return bool(self.status.segments) and self.job.exists() and self.job.is_alive()

    def once(self, what: object, step: int) -> bool:
        """Whether it is time for `what`, the run having come to that step; once."""
        if what in self.done or not self.trains or self.status.step < step:
            return False
        self.done.add(what)
        return True

    def signal(self, number: int, group: bool = True) -> None:
        """Sends a signal to the job's processes, or to their launcher alone."""
        (os.killpg if group else os.kill)(self.job.process()[0], number)


@dataclass(frozen=True)
class AlertRun:
    """One run, what befalls it, and what is to be heard of that."""

    name: str
    about: str
    steps: int
    alerts: tuple[str, ...] = ()
    """Those that fire at some time, and no other."""
    stays: tuple[str, ...] = ()
    """Those that still fire half an hour (of the series) after its end."""
    spec: Callable[[dict[str, Any]], None] = lambda _spec: None
    """Changes the spec."""
    act: Callable[[Running], None] = lambda _running: None
    """Called twice a second."""
    faults: dict[str, str] = field(default_factory=lambda: {"STEP_SECONDS": str(STEP)})
    succeeds: bool = True

    def document(self, folder: Path) -> dict[str, Any]:
        """The run as a person writes it: warmup, main, and a last phase with teacher and decay in it."""
        document = run_document(folder, self.name, self.steps)
        spec = document["spec"]
        warmup, main, distill = spec["phases"]
        warmup["until"], main["until"], distill["until"] = "10%", "65%", "100%"
        spec |= {
            "optimizer": {"adamLearningRate": 1e-3},
            "quantization": {"lambdaWarmup": {"steps": 20}},
            "schedule": {"warmupSteps": 20},
            "health": {"plateau": {"windowTokens": WINDOW * GLOBAL_BATCH * SEQUENCE}},
        }
        spec["checkpoint"]["everySteps"] = 20
        self.spec(spec)
        return document


def _without_teacher(spec: dict[str, Any]) -> None:
    del spec["teacher"]
    spec["phases"] = [{"name": "main", "until": "100%", "objectives": {"crossEntropy": {"weight": 1}}}]


def _flat(spec: dict[str, Any]) -> None:
    spec["optimizer"] = {"adamLearningRate": 1e-9}


def _one_in_a_row(spec: dict[str, Any]) -> None:
    spec["health"]["nonFinite"] = {"skipSteps": 1}


def _impatient(spec: dict[str, Any]) -> None:
    spec["health"]["stallSeconds"] = 90


def _no_checkpoint(spec: dict[str, Any]) -> None:
    _without_teacher(spec)
    spec["checkpoint"]["everySteps"] = 1000


def _optional_checkpoints(spec: dict[str, Any]) -> None:
    _without_teacher(spec)
    spec["checkpoint"]["required"] = False


def _stop(running: Running) -> None:
    if running.once("stop", step=40):
        launcher = Path(f"/proc/{running.job.process()[0]}")
        for ranks in launcher.glob("task/*/children"):
            for rank in ranks.read_text().split():
                os.kill(int(rank), signal.SIGSTOP)


def _preempt(running: Running) -> None:
    if running.once("preempt", step=60):
        running.signal(signal.SIGTERM, group=False)


def _kill_twice(running: Running) -> None:
    for job in ("retries-0", "retries-1"):
        if running.status.segments and running.status.segments[-1].job == job and running.once(job, step=20):
            running.signal(signal.SIGKILL)


def _block_checkpoints(running: Running) -> None:
    if running.once("block", step=60):
        folder = running.run_folder / "checkpoints"
        folder.rename(folder.with_name("moved"))
        folder.write_text("no folder\n")


def _lose_teacher(running: Running) -> None:
    if running.once("lose", step=20):
        shutil.rmtree(running.inputs / "teacher")


RUNS = (
    AlertRun(
        "healthy",
        "a healthy run through warmup, a phase with a teacher that is half as fast, and decay",
        steps=400,
        faults={"STEP_SECONDS": f"{STEP},260:{2 * STEP}"},
    ),
    AlertRun(
        "preempted",
        "a healthy run whose pods are preempted once: it goes on in others",
        steps=160,
        act=_preempt,
    ),
    AlertRun(
        "plateau",
        "a run with a learning rate of almost 0, whose loss is flat in warmup, main phase and decay",
        steps=300,
        alerts=("BitNetRunLossPlateau",),
        spec=_flat,
    ),
    AlertRun(
        "spike",
        "a run with one loss of ten times what it should be",
        steps=200,
        alerts=("BitNetRunLossSpike",),
        spec=_without_teacher,
        faults={"STEP_SECONDS": str(STEP), "SPIKES": "60"},
    ),
    AlertRun(
        "nonfinite",
        "a run with three steps in a row that are not finite, which are left out",
        steps=160,
        alerts=("BitNetRunNonFiniteSteps",),
        spec=_without_teacher,
        faults={"STEP_SECONDS": str(STEP), "NOT_FINITE": "60,61,62"},
    ),
    AlertRun(
        "rollback",
        "a run that goes back to a checkpoint from before two steps that are not finite",
        steps=160,
        alerts=("BitNetRunRollbacks",),
        spec=_one_in_a_row,
        faults={"STEP_SECONDS": str(STEP), "NOT_FINITE": "70,71"},
    ),
    AlertRun(
        "stalled",
        "a run whose rank is stopped, and ended for that after health.stallSeconds",
        steps=100,
        alerts=("BitNetRunStalled",),
        spec=_impatient,
        act=_stop,
    ),
    AlertRun(
        "retries",
        "a run whose processes are killed twice before it has a checkpoint",
        steps=80,
        alerts=("BitNetRunRetriesNearLimit",),
        spec=_no_checkpoint,
        act=_kill_twice,
    ),
    AlertRun(
        "checkpoints",
        "a run whose checkpoints cannot be written any more, and need not be",
        steps=200,
        alerts=("BitNetRunCheckpointStale", "BitNetRunCheckpointUploadFailing"),
        spec=_optional_checkpoints,
        act=_block_checkpoints,
    ),
    AlertRun(
        "teacher",
        "a run whose teacher is gone when its phase begins: it fails",
        steps=100,
        alerts=("BitNetRunTeacherUnavailable",),
        stays=("BitNetRunTeacherUnavailable",),
        act=_lose_teacher,
        succeeds=False,
    ),
    AlertRun(
        "slow",
        "a run whose steps take three times as long from the middle of a phase on",
        steps=250,
        alerts=("BitNetRunThroughputDrop",),
        spec=_without_teacher,
        faults={"STEP_SECONDS": f"{STEP},180:{3 * STEP}"},
    ),
)
