"""Builds the cluster's programs with Go, once for each content of their modules."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from local_cluster.errors import CommandFailed, LocalClusterError, MissingRequirement
from local_cluster.programs import BUILD_ENVIRONMENT, GO_BUILD_FLAGS, PROGRAMS, Program
from local_cluster.settings import cache_folder
from local_cluster.shell import run

OLDEST_GO = (1, 26)
Report = Callable[[str], None]


def build_all(report: Report = print, programs: Iterable[Program] = PROGRAMS) -> None:
    """Builds what the cache lacks: minutes when Go's own cache is cold, seconds when it is warm."""
    for program in programs:
        folder = program.folder()
        if folder.is_dir():
            continue
        report(f"building {program.name} …")
        start = time.monotonic()
        build(program)
        report(f"built {program.name} in {time.monotonic() - start:.0f} s: {folder}")


def build(program: Program) -> Path:
    """The folder with `program`'s executables, built now unless it is there.

    Raises:
        MissingRequirement: no Go that is new enough.
        LocalClusterError: the compiler failed; its own words are in the message.
    """
    finished = program.folder()
    if finished.is_dir():
        return finished
    go = find_go()
    finished.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{program.name}-", dir=finished.parent) as name:
        unfinished = Path(name) / "content"
        unfinished.mkdir()
        for binary, package in program.binaries:
            _compile(go, program, package, unfinished / binary)
        for manifest in program.manifests:
            shutil.copy(_module_source(go, program, manifest.module) / manifest.path, unfinished)
        publish(unfinished, finished)
    return finished


def publish(unfinished: Path, finished: Path) -> None:
    """Moves a whole folder into its place; another process that was faster has made the same content."""
    try:
        unfinished.rename(finished)
    except OSError:
        if not finished.is_dir():
            raise


def _compile(go: Path, program: Program, package: str, output: Path) -> None:
    flags = [*GO_BUILD_FLAGS, "-ldflags", program.linker_flags]
    done = subprocess.run(
        ["nice", go, "build", *flags, "-o", output, package],
        cwd=program.module_folder,
        env={**os.environ, **BUILD_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        where = f"{package} in {program.module_folder}"
        raise LocalClusterError(f"building {where} failed:\n{done.stderr.strip()}")


def _module_source(go: Path, program: Program, module: str) -> Path:
    """Where a module's files are: fetched, unless the programs built from it had it fetched already."""
    told = run([go, "mod", "download", "-json", module], cwd=program.module_folder, env=BUILD_ENVIRONMENT)
    return Path(json.loads(told)["Dir"])


def find_go() -> Path:
    """A Go of at least `OLDEST_GO`: the one on PATH, else the one the install script put into the cache."""
    cached = cache_folder() / "go" / "go" / "bin" / "go"
    on_path = shutil.which("go")
    for candidate in (Path(on_path) if on_path else None, cached):
        if candidate is not None and candidate.is_file() and go_version(candidate) >= OLDEST_GO:
            return candidate
    wanted = ".".join(map(str, OLDEST_GO))
    raise MissingRequirement(f"no Go {wanted} or newer")


def go_version(go: Path) -> tuple[int, int]:
    """(major, minor) of a Go program; (0, 0) where it does not say."""
    try:
        said = run([go, "env", "GOVERSION"])
    except (CommandFailed, OSError):
        return (0, 0)
    match = re.match(r"go(\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else (0, 0)
