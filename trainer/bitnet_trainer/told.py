"""What the operator tells pods that train already: a file that Kubernetes replaces, watched from a thread."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bitnet_crds.protocol import TOLD_FILE, Order, Told

TOLD = "BITNET_TOLD"
"""Environment variable: where the file is, if not at TOLD_FILE."""
LOOKED_AT_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Settings:
    """What of a run may change while it trains."""

    every_steps: int
    keep: int
    required: bool
    skip_steps: int

    @classmethod
    def of(cls, order: Order, told: Told) -> "Settings":
        """Those of the order, but for what its pods were told since."""
        checkpoint, non_finite = order.spec.checkpoint, order.spec.health.non_finite
        return cls(
            every_steps=checkpoint.every_steps if told.every_steps is None else told.every_steps,
            keep=checkpoint.keep if told.keep is None else told.keep,
            required=checkpoint.required if told.required is None else told.required,
            skip_steps=non_finite.skip_steps if told.skip_steps is None else told.skip_steps,
        )


@contextmanager
def listening(heard: Callable[[Told], None], warn: Callable[[str], None]) -> Iterator[None]:
    """Inside, `heard` is called with what the file says, once it says something and again when that changes:
    the first time before the block begins, then from a thread.

    An absent or empty file says nothing, which is what a pod is told at first. Of one that cannot be read as
    `Told` there is one warning, and what was told before holds.
    """
    file = _File(Path(os.environ.get(TOLD, TOLD_FILE)), heard, warn)
    file.look()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(LOOKED_AT_EVERY_SECONDS):
            file.look()

    threading.Thread(target=watch, name="told", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class _File:
    def __init__(self, path: Path, heard: Callable[[Told], None], warn: Callable[[str], None]) -> None:
        self._path, self._heard, self._warn = path, heard, warn
        self._stamp: tuple[int, int, int] | None = None
        self._told, self._warned = Told(), False

    def look(self) -> None:
        """Reads the file where it is another one than before."""
        try:
            # Of the file behind the links, which is another one with each change.
            now = self._path.stat()
            stamp = now.st_ino, now.st_mtime_ns, now.st_size
            if stamp == self._stamp:
                return
            said = self._path.read_text()
        except FileNotFoundError:
            stamp, said = None, ""
        except (OSError, UnicodeDecodeError) as error:
            self._complain(error)
            return
        self._stamp = stamp
        try:
            told = Told.model_validate_json(said) if said.strip() else Told()
        except ValidationError as error:
            self._complain(error)
            return
        if told != self._told:
            self._told = told
            self._heard(told)

    def _complain(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            self._warn(
                f"{self._path} cannot be read, so that this run hears nothing of changes to its spec: "
                f"{' '.join(str(error).split())[:300]}. What it was told before holds."
            )
