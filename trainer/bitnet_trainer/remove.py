"""Removes what a run keeps: `python -m bitnet_trainer.remove --order FILE`, for a run that was deleted."""

import argparse
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from bitnet_crds.locations import parse_location
from bitnet_crds.protocol import ExitCode, Order, Progress, TerminationReport
from bitnet_trainer import cloud, tuned_teacher
from bitnet_trainer.checkpoint.store import MARKER
from bitnet_trainer.cloud import CloudError, Place
from bitnet_trainer.errors import CheckpointError
from bitnet_trainer.outcome import failure_report, publish
from bitnet_trainer.stop import StopRequest

_log = logging.getLogger(__name__)

_MARKERS = (MARKER, tuned_teacher.MARKER)
"""Names of the files that go first: half a removal must not look like a checkpoint, nor like a teacher."""


def remove(order: Order) -> str:
    """Removes all that lies at `order.address`, and what this machine has of it; in words, what was removed.

    Nothing outside `<checkpoint.uri>/<namespace>/<name>` is touched, and nothing there is no fault. Raises
    CheckpointError where something cannot be removed, or is not the run's own.
    """
    location = parse_location(order.address)
    found = _remove_folder(order.folder)
    if location.bucket is not None and location.object is not None:
        found = _remove_objects(Place(location.bucket, location.object))
    return f"{order.address} is removed" if found else f"there was nothing at {order.address}"


def _remove_folder(folder: Path) -> bool:
    """Removes a run's folder; whether there was one. Links in it go, and what they lead to stays."""
    try:
        # <root>/<namespace>/<name>: the root may be a link, since a person named it; what is below may not.
        root = folder.parent.parent
        if folder.resolve() != root.resolve() / folder.parent.name / folder.name:
            raise CheckpointError(
                f"checkpoint.uri: {folder} is not removed: it is a link, or lies behind one, and what it "
                "leads to may not be the run's. Remove both by hand."
            )
        if not folder.exists():
            return False
        for place, _, names in os.walk(folder, onerror=_raise):
            for marker in set(_MARKERS).intersection(names):
                Path(place, marker).unlink(missing_ok=True)
        shutil.rmtree(folder)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint.uri: {error.filename or folder} cannot be removed ({error.strerror or error}). "
            "Let the user that trains write there, or remove it by hand."
        ) from error
    return True


def _raise(error: OSError) -> None:
    raise error


def _remove_objects(place: Place) -> bool:
    """Removes a run's objects; whether there were any."""
    try:
        with cloud.said_plainly(place, cloud.WRITING), cloud.connected() as client:
            blobs = _listed(client, place)
            for blob in sorted(blobs, key=lambda blob: blob.name.rpartition("/")[2] not in _MARKERS):
                cloud.delete(blob)
            # One that was replaced after it was listed is still there.
            left = _listed(client, place)
    except CloudError as error:
        raise CheckpointError(f"checkpoint.uri: {error}.", transient=error.transient) from error
    if left:
        raise CheckpointError(
            f"checkpoint.uri: gs://{place.bucket}/{left[0].name} was written while {place} was removed. See "
            "that nobody writes there, and try again.",
            transient=True,
        )
    return bool(blobs)


def _listed(client: Any, place: Place) -> list[Any]:
    listed = client.list_blobs(place.bucket, prefix=place.prefix, timeout=cloud.TIMEOUT, retry=cloud.RETRY)
    return list(listed)


def main() -> None:
    """Removes, writes the termination report, and ends with the exit code that says how it went."""
    parser = argparse.ArgumentParser(prog="python -m bitnet_trainer.remove")
    parser.add_argument("--order", type=Path, required=True, help="an order of the run, as JSON")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s removal %(levelname)s %(message)s", stream=sys.stderr)
    _log.setLevel(logging.INFO)
    StopRequest().listen()
    report = _report(arguments.order)
    publish(report)
    ended_well = report.exit_code == ExitCode.SUCCEEDED
    _log.log(logging.INFO if ended_well else logging.ERROR, "%s: %s", report.reason, report.message)
    sys.exit(report.exit_code)


def _report(path: Path) -> TerminationReport:
    code = ExitCode.SUCCEEDED
    try:
        message = remove(Order.model_validate_json(path.read_text()))
    except SystemExit:
        code, message = ExitCode.PREEMPTED, "asked to stop before all was removed; the next try goes on"
    except Exception as error:  # noqa: BLE001  # every end has a report
        return failure_report(error, 0, Progress(total_steps=0, phase="removal"))
    return TerminationReport(exit_code=code, reason=code.label, message=message)


if __name__ == "__main__":
    main()
