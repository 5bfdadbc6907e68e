"""Runs short commands and returns what they print."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from local_cluster.errors import CommandFailed, MissingRequirement
from local_cluster.settings import tools_folder


def run(
    command: Sequence[str | Path],
    *,
    stdin: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> str:
    """Stdout of `command`; `env` adds to this process's own environment.

    Raises:
        CommandFailed: it ended with another code than 0.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        input=stdin,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    if done.returncode != 0:
        raise CommandFailed(words, done.returncode, done.stderr or done.stdout)
    return done.stdout


def find_program(name: str) -> Path:
    """The cache's own copy of a tool, else the one on PATH.

    Raises:
        MissingRequirement: there is neither.
    """
    cached = tools_folder() / name
    if cached.is_file():
        return cached
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        raise MissingRequirement(f"{name} is not installed")
    return Path(found)
