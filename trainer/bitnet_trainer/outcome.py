"""How a rank ends: which error has which exit code, and the report it leaves for the launcher."""

import errno
import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
import torch.distributed as dist
from pydantic import ValidationError

from bitnet_crds.errors import ContractError
from bitnet_crds.protocol import Checkpoint, ExitCode, Order, Progress, TerminationReport, exit_code_label
from bitnet_trainer import errors
from bitnet_trainer.checkpoint.address import open_store
from bitnet_trainer.checkpoint.store import Committed

EXIT_CODES: Mapping[type[BaseException], ExitCode] = MappingProxyType(
    {
        errors.BadInput: ExitCode.BAD_INPUT,
        errors.ModelUnavailable: ExitCode.MODEL_UNAVAILABLE,
        errors.DataUnavailable: ExitCode.DATA_UNAVAILABLE,
        errors.TeacherUnavailable: ExitCode.TEACHER_UNAVAILABLE,
        errors.CheckpointError: ExitCode.CHECKPOINT_UNAVAILABLE,
        errors.NonFinite: ExitCode.NON_FINITE,
        ContractError: ExitCode.BAD_INPUT,
        ValidationError: ExitCode.BAD_INPUT,
        torch.OutOfMemoryError: ExitCode.OUT_OF_MEMORY,
        MemoryError: ExitCode.OUT_OF_MEMORY,
        dist.DistBackendError: ExitCode.PEER_LOST,
        dist.DistNetworkError: ExitCode.PEER_LOST,
        dist.DistStoreError: ExitCode.PEER_LOST,
    }
)
"""The exit code of each error, of its nearest base where the class itself is not here."""

REPORTS = "BITNET_REPORTS"
"""Environment variable: the folder in which each rank leaves its report for the launcher."""
TERMINATION_LOG = "BITNET_TERMINATION_LOG"
"""Environment variable: where the launcher writes the pod's last word."""
_ORDER = "order.json"
_KUBERNETES_TERMINATION_LOG = Path("/dev/termination-log")

_CHECKPOINTS_TOLD = 50
"""Newest checkpoints that a report names, at most: it has to fit a termination message."""

# What keeps a run from writing into its own folder; reading models and text has errors of its own.
_DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}

# Gloo raises a plain RuntimeError when the other end of a connection goes away.
_PEER_LOST_SIGNS = ("Connection closed by peer", "Connection reset by peer", "gloo/transport/tcp")


def exit_code_of(error: BaseException) -> int:
    """The exit code for an error: CRASHED for one that nobody foresaw."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(ExitCode.CRASHED)
    for kind in type(error).__mro__:
        if kind in EXIT_CODES:
            return EXIT_CODES[kind]
    if isinstance(error, OSError) and error.errno in _DISK_FAULTS:
        return ExitCode.CHECKPOINT_UNAVAILABLE
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _PEER_LOST_SIGNS):
        return ExitCode.PEER_LOST
    return ExitCode.CRASHED


def failure_report(error: BaseException, rank: int, progress: Progress) -> TerminationReport:
    """A rank's report of the error that ends it."""
    code = exit_code_of(error)
    if code == ExitCode.CRASHED:
        message = "".join(traceback.format_exception(error))[-3000:]
    elif code == ExitCode.PEER_LOST:
        message = f"rank {rank} lost another rank at step {progress.step}: {str(error)[:200]}"
    elif isinstance(error, SystemExit):
        message = f"asked to stop while {progress.state}; nothing was to be saved since step {progress.step}"
    elif isinstance(error, OSError) and code == ExitCode.CHECKPOINT_UNAVAILABLE:
        message = (
            f"checkpoint.uri: {error.filename or 'a file of the run'} cannot be written ({error.strerror}). "
            "Make it writable for the user that trains, free some space, or give another folder."
        )
    elif code == ExitCode.OUT_OF_MEMORY:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = (
            f"out of memory at step {progress.step}{_with(progress.micro_batch_size)}: {said} Lower "
            "workers.microBatchSize."
        )
    else:
        message = str(error)
    return TerminationReport(
        exit_code=code,
        reason=exit_code_label(code),
        message=message,
        rank=rank,
        step=progress.step,
        checkpoint=progress.checkpoint,
        fault=error.fault if isinstance(error, errors.NonFinite) else None,
        micro_batches=progress.micro_batches,
        transient=isinstance(error, errors.TrainerError) and error.transient,
    )


def _with(micro_batch_size: int) -> str:
    """Before the first step nothing is known of it."""
    return f", with a micro batch of {micro_batch_size} sequences" if micro_batch_size else ""


def leave_report(report: TerminationReport) -> None:
    """Puts a rank's report where the launcher looks for it; without a launcher it goes nowhere."""
    folder = os.environ.get(REPORTS)
    if folder is not None:
        pending = Path(folder, f".rank-{report.rank}")
        pending.write_text(report.to_message())
        pending.replace(Path(folder, f"rank-{report.rank}.json"))


def leave_order(order: Order) -> None:
    """Tells the launcher what order its ranks carry out, where that is another than they were given."""
    folder = os.environ.get(REPORTS)
    if folder is not None:
        pending = Path(folder, f".{_ORDER}")
        pending.write_text(order.model_dump_json(by_alias=True))
        pending.replace(Path(folder, _ORDER))


def order_left(folder: Path, given: Order) -> Order:
    """The order that the ranks carried out, which were given `given`."""
    left = folder / _ORDER
    return Order.model_validate_json(left.read_text()) if left.exists() else given


def collect_reports(folder: Path) -> dict[int, TerminationReport]:
    """The reports that ranks left in `folder`, by rank."""
    reports = [TerminationReport.model_validate_json(path.read_text()) for path in folder.glob("rank-*.json")]
    return {report.rank: report for report in reports if report.rank is not None}


def with_newest_checkpoint(report: TerminationReport, order: Order) -> TerminationReport:
    """The report with the committed checkpoints in it, as the disk knows them: a rank that died without a
    word could not say which is the newest."""
    try:
        committed = open_store(order).committed()
    except (OSError, errors.CheckpointError):
        return report  # which then says what is wrong with that folder, or is about something else
    if not committed:
        return report
    newest = reported(order, committed[0])
    return report.model_copy(
        update={
            "checkpoint": newest,
            "checkpoints": tuple(checkpoint.step for checkpoint in committed[:_CHECKPOINTS_TOLD]),
            "step": max(report.step, newest.step),
        }
    )


def reported(order: Order, committed: Committed) -> Checkpoint:
    """A checkpoint as operator and person know it: by the address that the run gave, unless it is one that is
    still to move there."""
    here = order.folder / "checkpoints" / committed.name
    if order.spec.checkpoint.uri.startswith("gs://") and committed.address == str(here):
        return Checkpoint(step=committed.step, uri=f"file://{here}")
    return Checkpoint(step=committed.step, uri=f"{order.address}/checkpoints/{committed.name}")


def publish(report: TerminationReport) -> None:
    """Writes the last word to BITNET_TERMINATION_LOG, else to Kubernetes' own place where there is one."""
    chosen = os.environ.get(TERMINATION_LOG)
    if chosen is None and not _KUBERNETES_TERMINATION_LOG.exists():
        return
    # Kubernetes mounts its file by itself: it can be written, not replaced.
    Path(chosen or _KUBERNETES_TERMINATION_LOG).write_text(report.to_message())
