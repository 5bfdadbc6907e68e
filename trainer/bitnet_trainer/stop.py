"""Being asked to stop: SIGTERM or SIGINT lets the step end, or the process where nothing is to be saved."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from bitnet_crds.protocol import ExitCode

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOP_SECONDS = 25
"""How long a rank may take to stop before it ends itself: less than the 30 s that Kubernetes gives a pod."""


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def listen(self) -> None:
        """Installs the handlers, and ends the process if it has not ended itself STOP_SECONDS after a signal.

        Call it in the main thread.
        """
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        at_once_on_signal(_end_late)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `requested`; outside, it raises SystemExit(PREEMPTED) on the spot."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            return  # it is stopping, with the others: raised now, it would leave them waiting
        self.requested = True
        if not self._deferred:
            raise SystemExit(int(ExitCode.PREEMPTED))


def at_once_on_signal(action: Callable[[], None]) -> None:
    """Calls `action` in a thread when a signal arrives that Python handles; call it in the main thread.

    Handlers themselves run in the main thread, and not while that sits in C++ code, such as a collective
    whose other end is gone or a rendezvous. The wake-up descriptor is written to at once.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        # The descriptor closes with its socket, so the thread holds both ends.
        with reader, writer:
            while reader.recv(1):
                action()

    threading.Thread(target=watch, name="signals", daemon=True).start()


def _end_late() -> None:
    time.sleep(STOP_SECONDS)
    os._exit(ExitCode.PREEMPTED)


LAUNCHER = "BITNET_LAUNCHER"
"""Environment variable: the launcher's process id, for its ranks."""


def end_with_launcher() -> None:
    """Ends this rank when its launcher is gone, also before this call: none is left holding a GPU or a port.

    A rank that was started without a launcher ends with the process that is its parent now.
    """
    parent = int(os.environ.get(LAUNCHER, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(ExitCode.PEER_LOST)

    threading.Thread(target=watch, name="parent", daemon=True).start()
