"""Where a run keeps what comes out: at its address, or on this machine where nobody may reach its bucket."""

import logging
from contextlib import ExitStack
from pathlib import Path
from tempfile import NamedTemporaryFile

from bitnet_crds.carried_out import carried_out
from bitnet_crds.locations import parse_location
from bitnet_crds.protocol import SCRATCH, Order
from bitnet_trainer.checkpoint.address import open_store
from bitnet_trainer.cloud import NoCredentialsError
from bitnet_trainer.errors import CheckpointError
from bitnet_trainer.outcome import leave_order
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.report import Reporter

_log = logging.getLogger(__name__)


def prepared(run: Order, ranks: Ranks, reporter: Reporter) -> Order:
    """Sees that checkpoints can be written, before anything costly: the run's order as it is carried out.

    That is another than `run` where nothing on this machine offers credentials for the bucket and checkpoints
    are not required: then all of it is kept in the run's folder here, and a warning says so. Every rank calls
    it, and the first one decides. Raises CheckpointError where checkpoints are required and cannot be
    written, or where the run would begin anew and may not.
    """
    missing = ranks.from_first(_missing(run, reporter) if ranks.first else None)
    if missing is None:
        return run
    here = _kept_here(run)
    if not _all_see(here.folder, ranks):
        raise CheckpointError(
            f"{missing} The {ranks.world} ranks of this run share no disk to keep checkpoints on instead: "
            "give all its pods one volume as `cache` in workers.template, or train in one pod."
        )
    if ranks.turn < 2:
        leave_order(here)
    if ranks.first:
        reporter.warn(_words(here, missing))
    return here


def _missing(run: Order, reporter: Reporter) -> str | None:
    """What is said of the credentials that are missing, where the run is to be kept here. Raises
    CheckpointError where the run ends."""
    order = carried_out(run)
    try:
        open_store(order).prepare()
    except CheckpointError as error:
        if order.spec.checkpoint.required:
            raise
        if isinstance(error.__cause__, NoCredentialsError):
            _prepare_here(_kept_here(run), error)
            return str(error)
        message = f"{error} Training begins without; each checkpoint tries again."
        _log.error("%s", message)
        reporter.update(checkpoint_error=message, checkpoint_failures=1)
    return None


def _prepare_here(here: Order, error: CheckpointError) -> None:
    """Sees that the run can be kept in its folder. Raises CheckpointError where it cannot, or where the run
    has a checkpoint that is not there: training on from less would lose it."""
    here.folder.mkdir(parents=True, exist_ok=True)
    store = open_store(carried_out(here))
    store.prepare()
    newest = max((checkpoint.step for checkpoint in store.committed()), default=0)
    if newest < here.first_step:
        raise CheckpointError(
            f"{error} The run is at step {here.first_step}, and {here.folder} holds no checkpoint of that: "
            "training begins no second time while the bucket may have one. To begin again all the same, give "
            "the run another name."
        ) from error


def _kept_here(run: Order) -> Order:
    """The order with what the run keeps in its folder on this machine."""
    location = parse_location(run.spec.checkpoint.uri)
    checkpoint = run.spec.checkpoint.model_copy(update={"uri": f"file://{Path(run.scratch, location.rest)}"})
    return run.model_copy(update={"spec": run.spec.model_copy(update={"checkpoint": checkpoint})})


def _all_see(folder: Path, ranks: Ranks) -> bool:
    """Whether what the first rank writes into a folder is there for every rank."""
    with ExitStack() as there:
        name = None
        if ranks.first:
            name = Path(there.enter_context(NamedTemporaryFile(dir=folder, prefix=".probe-")).name).name
        (seen,) = ranks.total(int((folder / ranks.from_first(name)).exists()))
    return seen == ranks.world


def _words(here: Order, missing: str) -> str:
    words = (
        f"GCS disabled: training continues, checkpoints stay on {here.folder / 'checkpoints'}. {missing} The "
        "next start with credentials goes on from the newest of them, and later ones are in the bucket. "
        "Exports are beside them, too, if the run ends without."
    )
    if here.scratch == SCRATCH:
        words += (
            " This is the pods' volume `cache`: an emptyDir, which goes with its pod and takes all of this "
            "along, and the run cannot go on then, unless workers.template puts another volume in its place."
        )
    return words
