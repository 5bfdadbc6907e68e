"""The launcher: `python -m bitnet_trainer --order FILE` runs torchrun's agent here, and one process a rank.

torchrun as a program exits with 1 whatever its child said; run in-process, the agent tells which rank
ended how, and this process ends with that rank's own exit code.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from bitnet_crds.carried_out import carried_out
from bitnet_crds.protocol import ExitCode, Order, TerminationReport, Told, exit_code_label
from bitnet_trainer.errors import BadInput
from bitnet_trainer.outcome import (
    REPORTS,
    collect_reports,
    order_left,
    publish,
    with_newest_checkpoint,
)
from bitnet_trainer.stop import LAUNCHER, SIGNALS, STOP_SECONDS, at_once_on_signal
from bitnet_trainer.told import listening

_log = logging.getLogger(__name__)

OUTLIVE_SECONDS = 5
"""How long a pod that lost another one outlives it, and one that was asked to stop the others, which stop
with it. A job ends with the first of its pods that fails, and the others are removed with what they had to
say: first should be the cause, and never the pod that is being removed anyway."""
RENDEZVOUS_SECONDS = 600
"""How long the pods wait for each other."""


@dataclass(frozen=True)
class Place:
    """Where this launcher stands among the nodes of the job."""

    nodes: int
    node_rank: int
    processes: int
    """Ranks on this node."""
    master_address: str
    master_port: int


def find_place(order: Order, environment: Mapping[str, str]) -> Place:
    """Reads what the job's backend sets; with none of it, every rank of the order runs on this machine.

    Raises BadInput where the processes are not as many as the order's ledger was made for.
    """
    shape = order.shape
    if "PET_NNODES" not in environment:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return Place(1, 0, shape.world_size, "127.0.0.1", free.getsockname()[1])
    processes = environment.get("PET_NPROC_PER_NODE", "auto")
    place = Place(
        nodes=int(environment["PET_NNODES"]),
        node_rank=int(environment.get("PET_NODE_RANK", environment.get("RANK", "0"))),
        processes=shape.processes_per_worker if processes in ("auto", "cpu", "gpu") else int(processes),
        master_address=environment.get("PET_MASTER_ADDR", environment.get("MASTER_ADDR", "127.0.0.1")),
        master_port=int(environment.get("PET_MASTER_PORT", environment.get("MASTER_PORT", "23456"))),
    )
    if place.nodes * place.processes != shape.world_size:
        raise BadInput(
            f"this job has {place.nodes} nodes x {place.processes} processes, and the order was made for "
            f"{shape.workers} x {shape.processes_per_worker}. Start the segment anew with the order's shape."
        )
    return place


WORKER = ("-m", "bitnet_trainer.worker")
"""What each rank runs, as arguments of this Python; `--order FILE` follows."""


def main(worker: Sequence[str] = WORKER) -> None:
    """Launches, writes the termination report, and ends with the exit code of the rank that decided it."""
    parser = argparse.ArgumentParser(prog="bitnet-trainer", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--order", type=Path, required=True, help="the order as JSON, as the operator wrote it"
    )
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s launcher %(levelname)s %(message)s", stream=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="bitnet-") as scratch:
        end = _launch(arguments.order, Path(scratch), worker)
    publish(end.report)
    if end.outlives_others:
        time.sleep(OUTLIVE_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    # Interpreter shutdown takes seconds on a busy machine, in which an outliving pod would end first.
    os._exit(end.report.exit_code)


@dataclass(frozen=True)
class _End:
    """How the ranks of this launcher ended."""

    report: TerminationReport
    outlives_others: bool = False
    """Whether the other pods of the job should end before this one does."""


def _launch(path: Path, scratch: Path, worker: Sequence[str]) -> _End:
    try:
        order = Order.model_validate_json(path.read_text())
        place = find_place(order, os.environ)
    # A ValueError: the order is no order, or not even text, or one of PyTorchJob's variables is no number.
    except (OSError, ValueError, BadInput) as error:
        return _End(_refused(path, error))
    os.environ[REPORTS] = str(scratch)
    os.environ[LAUNCHER] = str(os.getpid())
    if "OMP_NUM_THREADS" not in os.environ:
        # Each rank would otherwise take every core of the machine.
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // place.processes))
    config = LaunchConfig(
        min_nodes=place.nodes,
        max_nodes=place.nodes,
        nproc_per_node=place.processes,
        run_id=order.job,
        role="trainer",
        rdzv_backend="static",
        rdzv_endpoint=f"{place.master_address}:{place.master_port}",
        rdzv_configs={"rank": place.node_rank, "timeout": RENDEZVOUS_SECONDS},
        max_restarts=0,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(scratch / "logs")),
        signals_to_handle="SIGTERM,SIGINT",
    )
    _stop_while_waiting()
    told_to_stop = threading.Event()

    def heard(told: Told) -> None:
        if told.stop:
            told_to_stop.set()
            # As a signal to this pod does, from wherever its ranks and this launcher are.
            os.kill(os.getpid(), signal.SIGTERM)

    with listening(heard, _log.warning):
        report, asked = _run_ranks(config, [*worker, "--order", str(path)], place, scratch)
    # A pod that was told to stop is not being removed.
    removed = asked and not told_to_stop.is_set() and report.exit_code == ExitCode.PREEMPTED
    outlives = removed or report.exit_code == ExitCode.PEER_LOST
    order = carried_out(order_left(scratch, order))
    return _End(with_newest_checkpoint(report, order), outlives and place.nodes > 1)


def _run_ranks(
    config: LaunchConfig, arguments: Sequence[str], place: Place, scratch: Path
) -> tuple[TerminationReport, bool]:
    """Runs the agent until its ranks have ended: how they did, and whether it was asked to stop them."""
    try:
        try:
            elastic_launch(config, sys.executable)(*arguments)
        finally:
            # The agent's handlers would stay, and raise in whatever is still to be done. It is little, and
            # then this process ends anyway.
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
    except ChildFailedError as error:
        return explain_failure(error.failures, collect_reports(scratch)), False
    except SignalException:
        return explain_stop(collect_reports(scratch)), True
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        lost = _report(
            ExitCode.PEER_LOST,
            f"the {place.nodes} nodes did not find each other at {place.master_address}:{place.master_port} "
            f"within {RENDEZVOUS_SECONDS} s: {str(error).splitlines()[0]}",
        )
        return lost, False
    reports = collect_reports(scratch)
    first = min(reports, default=None)
    ended_well = _report(ExitCode.SUCCEEDED, "every rank ended well") if first is None else reports[first]
    return ended_well, False


def explain_failure(
    failures: Mapping[int, ProcessFailure], reports: Mapping[int, TerminationReport]
) -> TerminationReport:
    """The report of the rank that is the cause, or one in its name where it died without a word.

    A rank that lost its peer, or that the agent then asked to stop, is no cause while another one failed.
    """
    codes = {
        rank: failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
        for rank, failure in failures.items()
    }

    def order(rank: int) -> tuple[bool, bool, int, int]:
        code = codes[rank]
        return code == ExitCode.PEER_LOST, code == ExitCode.PREEMPTED, failures[rank].timestamp, rank

    rank = min(codes, key=order)
    report = reports.get(rank)
    if report is not None and report.exit_code == codes[rank]:
        return report
    number = codes[rank] - 128
    if failures[rank].exitcode < 0:
        how = f"was killed by signal {number} ({signal.Signals(number).name})"
        if number == signal.SIGKILL:
            how += ", which is what the kernel does when memory runs out,"
    else:
        how = f"ended with exit code {codes[rank]}"
    step = max((report.step for report in reports.values()), default=0)
    return _report(codes[rank], f"rank {rank} {how} and left no report", rank, step)


def explain_stop(reports: Mapping[int, TerminationReport]) -> TerminationReport:
    """The report after a signal to the launcher: of a rank that failed while stopping, else of the first."""
    for report in sorted(reports.values(), key=lambda report: report.rank or 0):
        if report.exit_code not in (ExitCode.PREEMPTED, ExitCode.PEER_LOST):
            return report
    stopped = [report for report in reports.values() if report.exit_code == ExitCode.PREEMPTED]
    if stopped:
        return min(stopped, key=lambda report: report.rank or 0)
    return _report(
        ExitCode.PREEMPTED, f"asked to stop, and no rank could write a checkpoint within {STOP_SECONDS} s"
    )


def _refused(path: Path, error: Exception) -> TerminationReport:
    report = _report(ExitCode.BAD_INPUT, f"{path}: {error}")
    print(report.message, file=sys.stderr)
    return report


def _report(code: int, message: str, rank: int | None = None, step: int = 0) -> TerminationReport:
    return TerminationReport(
        exit_code=code, reason=exit_code_label(code), message=message, rank=rank, step=step
    )


def _stop_while_waiting() -> None:
    """Makes a signal end this process while it waits for other nodes, which it does in C++ code.

    As the first process of a container it would get no default action, either. When the ranks have started,
    the agent's own handlers stand, and pass the signal on to them.
    """

    def waiting(number: int, frame: object) -> None:
        """Replaced by the agent when ranks start."""

    def stop() -> None:
        if signal.getsignal(signal.SIGTERM) is waiting:
            publish(_report(ExitCode.PREEMPTED, "asked to stop before training began"))
            os._exit(ExitCode.PREEMPTED)

    for number in SIGNALS:
        signal.signal(number, waiting)
    at_once_on_signal(stop)


if __name__ == "__main__":
    main()
