"""Being asked to stop, in a process that has handlers of its own."""

import os
import signal

import pytest

from bitnet_crds.protocol import ExitCode
from bitnet_trainer.stop import SIGNALS, StopRequest


@pytest.fixture
def stop():
    """A request whose handlers stand while a test runs; nothing ends the process late."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    request = StopRequest()
    for number in SIGNALS:
        signal.signal(number, request._on_signal)
    yield request
    for number, handler in before.items():
        signal.signal(number, handler)


def ask():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("stop")
def test_a_signal_ends_a_process_that_has_nothing_to_save():
    with pytest.raises(SystemExit) as ended:
        ask()
    assert ended.value.code == ExitCode.PREEMPTED


def test_a_signal_is_noted_where_there_is_something_to_save(stop):
    with stop.deferred():
        ask()
    assert stop.requested


def test_a_process_that_stops_already_is_not_stopped_once_more(stop):
    """Two pods that are removed are not asked in the same moment, and all ranks stop with the first."""
    stop.requested = True
    ask()
    with stop.deferred():
        ask()
    ask()
