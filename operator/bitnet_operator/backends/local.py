"""The local backend: this machine as a world that one run lives in, its job being a process group.

The run's folder holds all there is to know, so that a second `bitnetctl run` finds what the first one left,
even a trainer that still runs.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import ValidationError

from bitnet_crds import (
    BitNetRun,
    BitNetRunSpec,
    BitNetRunStatus,
    ExitCode,
    InvalidRun,
    Order,
    Plan,
    Problem,
    Progress,
    Segment,
    TerminationReport,
    parse_run,
)
from bitnet_crds.changes import MUTABLE
from bitnet_crds.protocol import Told
from bitnet_crds.status import RunPhase
from bitnet_operator.decision import Decision, Tell
from bitnet_operator.desired import as_annotation
from bitnet_operator.local_folder import local_folder, scratch
from bitnet_operator.observation import Job, JobState, Key, Observation, Pod
from bitnet_operator.progress import ask
from bitnet_operator.segments import order_of, pods_of_order, told

log = logging.getLogger(__name__)

STATUS_FILE = "status.json"
"""In the run's folder, what the cluster keeps in the run's status."""


class RunInUseError(Exception):
    """Another bitnetctl drives this run."""


@dataclass(frozen=True)
class JobFolder:
    """Where one job keeps what it was told and what it said."""

    path: Path

    @property
    def order(self) -> Path:
        """The order, as JSON."""
        return self.path / "order.json"

    @property
    def log(self) -> Path:
        """All output of the job's processes."""
        return self.path / "trainer.log"

    @property
    def termination(self) -> Path:
        """The termination report, as JSON."""
        return self.path / "termination.json"

    @property
    def told(self) -> Path:
        """What the job is told while it trains, as JSON."""
        return self.path / "told.json"

    @property
    def alive(self) -> Path:
        """Locked for as long as the launcher lives, whoever started it; holds its process id and port."""
        return self.path / "alive"

    def exists(self) -> bool:
        """Whether the job was ever started."""
        return self.alive.exists()

    def is_alive(self) -> bool:
        """Whether its launcher still runs. A lock cannot be mistaken as a process id can."""
        with self.alive.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def process(self) -> tuple[int, int]:
        """Process id of the launcher, and the port that it serves /progress on."""
        pid, port = self.alive.read_text().split()
        return int(pid), int(port)

    def words(self) -> Told | None:
        """What the job was told last."""
        try:
            return Told.model_validate_json(self.told.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def made_from(self) -> str | None:
        """What its processes were made from, as in `Segment.pods`."""
        try:
            return pods_of_order(Order.model_validate_json(self.order.read_bytes()))
        except (FileNotFoundError, ValidationError):
            return None

    def report(self) -> TerminationReport | None:
        """The job's last word, if it left one."""
        try:
            return TerminationReport.model_validate_json(self.termination.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None


@dataclass
class LocalMachine:
    """The one run of `document`, on this machine."""

    document: Mapping[str, Any]
    http: aiohttp.ClientSession
    stop_requested: bool = False
    """Set where a person wants the run to checkpoint and stop."""
    since: datetime | None = None
    """When somebody began to look."""
    progress: Progress | None = None
    """What the trainer answers; None where none is alive to answer."""
    status: BitNetRunStatus = field(default_factory=BitNetRunStatus)
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        run = parse_run(self.document)
        self.folder = local_folder(run.spec, run.metadata.namespace, run.metadata.name)
        self.status = read_status(self.folder) or self.status

    @property
    def _status_file(self) -> Path:
        return self.folder / STATUS_FILE

    def job_folder(self, job: str) -> JobFolder:
        """Where that job keeps its files."""
        return JobFolder(self.folder / "jobs" / job)

    async def observe(self, key: Key) -> Observation | None:  # noqa: ARG002 - there is one run only
        """The run as it stands now."""
        begun = list(dict.fromkeys(segment.job for segment in self.status.segments))
        # The job after the last one is there when bitnetctl died between starting it and writing that down.
        unwritten = f"{self.document['metadata']['name']}-{len(begun)}"
        self.progress = None
        jobs = [await self._job(name) for name in (*begun[-1:], unwritten) if self.job_folder(name).exists()]
        stop = self.stop_requested or self.document["spec"].get("suspend") is True
        return Observation(self.document, self.status, tuple(jobs), stop, watched_since=self.since)

    async def apply(self, key: Key, observation: Observation, plan: Plan | None, decision: Decision) -> None:
        """Makes the decision true: the process, then the status, then events."""
        if decision.ensure is not None and plan is not None and observation.job(decision.ensure) is None:
            self._start(decision.status.segments[-1], plan)
        if decision.tell is not None:
            self._tell(decision.tell)
        for job in decision.delete:
            self._delete(job)
        if decision.status != self.status or not self._status_file.exists():
            self.status = decision.status
            _write(self._status_file, self.status.model_dump_json(by_alias=True, exclude_none=True, indent=2))
        for event in decision.events:
            log.info("%s: %s: %s", key, event.reason, event.message)

    def _tell(self, tell: Tell) -> None:
        """Writes the words down for the trainer. To stop, a signal is heard sooner than a file is read."""
        folder = self.job_folder(tell.job)
        if tell.words.stop and folder.is_alive():
            os.kill(folder.process()[0], signal.SIGTERM)
        _write(folder.told, as_annotation(tell.words))

    def _delete(self, job: str) -> None:
        """Ends the job's processes at once; its last committed checkpoint and its words stay."""
        folder = self.job_folder(job)
        if folder.exists() and folder.is_alive():
            os.killpg(folder.process()[0], signal.SIGKILL)

    def kill(self) -> None:
        """Ends the processes of the current job at once; its last committed checkpoint stays."""
        for segment in self.status.segments[-1:]:
            self._delete(segment.job)

    async def wait(self, seconds: float) -> None:
        """Sleeps, but no longer than until a process that was started here ends."""
        deadline = asyncio.get_running_loop().time() + seconds
        running = [child for child in self._children.values() if child.poll() is None]
        while asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(min(0.1, seconds))
            if any(child.poll() is not None for child in running):
                return

    def _start(self, segment: Segment, plan: Plan) -> None:
        folder = self.job_folder(segment.job)
        folder.path.mkdir(parents=True, exist_ok=True)
        run = parse_run(self.document)
        order = order_of(run, plan, segment).model_copy(update={"scratch": scratch()})
        _write(folder.told, as_annotation(told(run.spec)))
        _write(folder.order, order.model_dump_json(by_alias=True, exclude_none=True))
        port = _free_port()
        with folder.alive.open("w") as alive, folder.log.open("ab") as log:
            # The child inherits the locked descriptor, and with it the lock.
            fcntl.flock(alive, fcntl.LOCK_EX)
            child = subprocess.Popen(
                [sys.executable, "-m", "bitnet_trainer", "--order", str(folder.order)],
                env=os.environ
                | {
                    "BITNET_HOST": "127.0.0.1",
                    "BITNET_PORT": str(port),
                    "BITNET_TERMINATION_LOG": str(folder.termination),
                    "BITNET_TOLD": str(folder.told),
                    "PYTHONUNBUFFERED": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[alive.fileno()],
                # Ctrl-C in the terminal is for bitnetctl, which then asks the trainer to stop.
                start_new_session=True,
            )
            alive.write(f"{child.pid} {port}\n")
        self._children[segment.job] = child

    async def _job(self, name: str) -> Job:
        folder = self.job_folder(name)
        if folder.is_alive():
            self.progress = await ask(self.http, "127.0.0.1", folder.process()[1])
            pod = Pod(name, 0, running=True, told=folder.words())
            return Job(name, JobState.ACTIVE, None, (pod,), self.progress, folder.made_from())
        report = folder.report()
        exit_code = self._exit_code(name, report)
        pod = Pod(name, 0, exit_code=exit_code, report=report, message=_last_line(folder.log))
        state = JobState.SUCCEEDED if exit_code == 0 else JobState.FAILED
        return Job(name, state, pods=(pod,), made_from=folder.made_from())

    def _exit_code(self, job: str, report: TerminationReport | None) -> int:
        child = self._children.get(job)
        if child is not None:
            code = child.wait()
            return 128 - code if code < 0 else code
        # Another bitnetctl started it, so its exit code is known from its last word alone.
        return report.exit_code if report is not None else int(ExitCode.CRASHED)


def read_status(folder: Path) -> BitNetRunStatus | None:
    """What was decided so far of the run that is kept there; None where nothing was.

    Raises InvalidRun where the file holds no status, as after a full disk.
    """
    path = folder / STATUS_FILE
    try:
        return BitNetRunStatus.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else "holds no status of a run"
        raise InvalidRun(
            [Problem(str(path), str(why), f"Remove it, or all of {folder} to train anew")]
        ) from None


def check_unchanged(run: BitNetRun) -> None:
    """Raises InvalidRun where the run began with another spec, whose result would pass for this one's.

    What may change in a cluster may change here, and where checkpoints are kept led here. All may, where the
    run failed before it had a checkpoint: then nothing of it is left to go on from.
    """
    folder = local_folder(run.spec, run.metadata.namespace, run.metadata.name)
    status = read_status(folder)
    if status is not None and status.phase is RunPhase.FAILED and status.checkpoint_step is None:
        return
    orders = sorted(folder.glob("jobs/*/order.json"), key=lambda path: path.stat().st_mtime_ns)
    if not orders:
        return
    try:
        begun = Order.model_validate_json(orders[-1].read_bytes()).spec
    except (OSError, ValidationError):
        raise InvalidRun(
            [Problem(str(orders[-1]), "not an order that can be read", f"Remove {folder}")]
        ) from None
    before, now = _decisive(begun), _decisive(run.spec)
    mend = f"Give the run another name, or remove {folder}"
    changed = [field for field in now if now[field] != before[field]]
    if changed:
        raise InvalidRun(Problem(f"spec.{field}", "changed since this run began", mend) for field in changed)


def _decisive(spec: BitNetRunSpec) -> dict[str, Any]:
    """What may not change while a run exists, by top-level field as one writes it."""
    decisive = spec.model_dump(by_alias=True, exclude={"checkpoint": True, "workers": {"backend"}})
    for changeable in MUTABLE:
        block, _, key = changeable.partition(".")
        if key and block in decisive:
            decisive[block].pop(key, None)
        elif not key:
            decisive.pop(block, None)
    return decisive


@contextlib.contextmanager
def only_driver(folder: Path) -> Iterator[None]:
    """Holds the run for this process. Raises RunInUseError where another bitnetctl holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "driver").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunInUseError(f"{folder}: another bitnetctl runs this; wait for it or stop it") from None
        yield


def _write(path: Path, text: str) -> None:
    """Replaces a file in one step, so that no reader and no crash sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)


def _last_line(log: Path) -> str | None:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
