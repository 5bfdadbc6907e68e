"""Starts the cluster's host processes, waits for them, and finds and kills all of them again.

Each process carries the cluster's work folder in an environment variable. What a crashed run left behind is
found by that mark, containerd's shims included, without any file of process ids.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from local_cluster.errors import CommandFailed, ComponentFailed, LocalClusterError
from local_cluster.settings import without_proxy

MARK = "BITNET_LOCAL_CLUSTER_WORK"
PROC = Path("/proc")
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Component:
    """One running process of the cluster."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raises ComponentFailed once the process has ended."""
        exit_code = self.process.poll()
        if exit_code is not None:
            raise ComponentFailed(self.name, f"ended with {exit_code}", self.log)


@dataclass
class Processes:
    """All the processes of the cluster whose work folder is `work`."""

    work: Path
    components: list[Component] = field(default_factory=list)

    def start(
        self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None
    ) -> Component:
        """Starts a component in the background; its output goes to `log/<name>.log`."""
        log = self.work / "log" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **without_proxy(), MARK: str(self.work), **(env or {})},
                # An interrupt on the terminal is for the caller alone, who then stops the cluster in order.
                start_new_session=True,
            )
        component = Component(name, process, log)
        self.components.append(component)
        return component

    def wait_until(
        self, component: Component, ready: Callable[[], bool], what: str = "ready", timeout: float = 60
    ) -> None:
        """Returns once `ready()` is true; a command that fails in it counts as not yet.

        Raises:
            ComponentFailed: this component or any other ended, or `timeout` seconds went by.
        """
        deadline = time.monotonic() + timeout
        reason = ""
        while True:
            for each in self.components:
                each.check()
            try:
                if ready():
                    return
            except (CommandFailed, OSError) as error:
                reason = f" ({error})"
            if time.monotonic() > deadline:
                late = f"was not {what} after {timeout:.0f} s{reason}"
                raise ComponentFailed(component.name, late, component.log)
            time.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """Kills every process of this cluster, pods included, and waits until none is left."""
        kill_marked(self.work)
        for component in self.components:
            component.process.wait()
        self.components.clear()


def marked_processes() -> dict[int, Path]:
    """Process id to work folder, of every local cluster's processes on this machine but for the pods'."""
    found: dict[int, Path] = {}
    prefix = f"{MARK}=".encode()
    for folder in PROC.glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:  # it ended in the meantime, or is another user's
            continue
        for entry in environment.split(b"\0"):
            if entry.startswith(prefix) and int(folder.name) != os.getpid():
                found[int(folder.name)] = Path(os.fsdecode(entry.removeprefix(prefix)))
    return found


def other_clusters(work: Path) -> set[Path]:
    """Work folders of local clusters that run now, but for `work`."""
    return {each for each in marked_processes().values() if each != work}


def kill_marked(work: Path, timeout: float = 15) -> None:
    """Kills the processes marked with `work` and all that descend from them.

    Raises:
        LocalClusterError: some outlived SIGKILL for `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while doomed := _with_descendants({pid for pid, owner in marked_processes().items() if owner == work}):
        for pid in doomed:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            raise LocalClusterError(f"processes of {work} do not end: {sorted(doomed)}")
        time.sleep(POLL_SECONDS)


def _with_descendants(roots: set[int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        # The command's name, in brackets, may hold spaces: the fields are counted from its end.
        state, parent = stat.rpartition(")")[2].split()[:2]
        if state != "Z":
            children.setdefault(int(parent), []).append(int(folder.name))
    found: set[int] = set()
    pending = list(roots)
    while pending:
        pid = pending.pop()
        if pid not in found:
            found.add(pid)
            pending.extend(children.get(pid, []))
    return found


def answers(address: str, port: int, path: str) -> bool:
    """Whether an HTTP server answers with 200; raises OSError where it does not."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{address}:{port}{path}", timeout=2) as answer:
        return bool(answer.status == 200)
