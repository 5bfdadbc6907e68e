"""Where checkpoints are kept: what every such place can do, and what makes a checkpoint exist in it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

MARKER = "COMMITTED"
"""What is written last. It holds the size and the checksum of every other file of the checkpoint."""
DAMAGED = "DAMAGED"
"""What the marker of a checkpoint is called once an older one was gone on from in its place."""

_OF_A_RANK = re.compile(r"__(\d+)_")
"""How the names of the files begin that torch's writer makes for one rank."""


@dataclass(frozen=True)
class Committed:
    """A checkpoint whose marker is there."""

    step: int
    """Optimiser steps completed in it."""
    address: str
    """Of its folder: a path, or gs://bucket/path."""

    @property
    def name(self) -> str:
        """Of its folder in the store."""
        return name_of(self.step)


class CheckpointStore(Protocol):
    """The checkpoints of one run, as one of its ranks reaches them.

    `stage`, `deliver` and then, on the first rank, `commit` make a checkpoint. A process that dies at any
    point leaves either a whole checkpoint or one that nobody reads. Each method raises CheckpointError where
    the place does not do what it should.
    """

    address: str
    """Of the folder of all of them."""
    keep: int
    """How many of the newest stay at a commit."""

    def prepare(self) -> None:
        """Sees that checkpoints can be written, and clears what a killed process left half-written.

        Call it on one rank before anything costly begins.
        """

    def stage(self, step: int) -> None:
        """Makes `staging(step)`, an empty folder to write the checkpoint of `step` into. Every rank calls it,
        and none writes before all have."""

    def staging(self, step: int) -> Path:
        """The folder on this machine that this rank writes the checkpoint of `step` into."""

    def deliver(self, step: int) -> dict[str, Any]:
        """Hands over what this rank wrote; what the marker is to say of each file. Every rank calls it."""

    def commit(self, step: int, files: Mapping[str, Any]) -> Committed:
        """Makes what was delivered a checkpoint, and removes all but the newest. Call it on the first rank.

        `files` is what `deliver` returned on all ranks.
        """

    def committed(self) -> tuple[Committed, ...]:
        """The committed checkpoints, newest first, sound or not."""

    def verify(self, checkpoint: Committed) -> str | None:
        """What is wrong with a checkpoint's files, compared with its marker; None where nothing is."""

    def set_aside(self, checkpoint: Committed) -> None:
        """Takes the marker off a checkpoint, damaged or left behind, that an older one takes the place of.

        Else it would count as newest and push that one out. Its files stay until the next commit, or until
        its own step is written again. Call it after `prepare`, on the same rank.
        """

    def read(self, checkpoint: Committed, name: str) -> bytes:
        """A small file of a checkpoint."""

    def folder(self, checkpoint: Committed) -> Path:
        """A checkpoint's files on this machine, to be read only."""

    def forget(self, checkpoint: Committed) -> None:
        """Lets go of what `folder` fetched. Call it when no process of this machine reads it any more."""


def name_of(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder; None for another name."""
    digits = name.removeprefix("step-")
    return int(digits) if name.startswith("step-") and digits.isdigit() else None


def writer_of(name: str) -> int:
    """The rank that wrote a file of a checkpoint, by the file's name."""
    match = _OF_A_RANK.match(name)
    return int(match[1]) if match else 0
