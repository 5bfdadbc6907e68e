"""Being asked to stop: SIGTERM or SIGINT lets the step end, or the process where nothing is to be saved."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bitnet_crds.protocol import ExitCode

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def listen(self) -> None:
        """Installs the handlers; call it in the main thread."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `requested`; outside, it raises SystemExit(PREEMPTED) on the spot."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            raise SystemExit(int(ExitCode.PREEMPTED))


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone: no rank is left holding a GPU or a port."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(ExitCode.PEER_LOST)

    threading.Thread(target=watch, name="parent", daemon=True).start()
