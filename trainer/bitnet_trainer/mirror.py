"""What a person needs of a run, kept beside its checkpoints where those are in a bucket.

The run itself works in a folder of the machine that trains, which may not be there for the next one.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from bitnet_crds.locations import parse_location
from bitnet_crds.protocol import Order
from bitnet_trainer import cloud
from bitnet_trainer.cloud import CloudError, Place
from bitnet_trainer.errors import CheckpointError

_log = logging.getLogger(__name__)

RECORD, METRICS = "run.json", "metrics.jsonl"


class Mirror:
    """Copies a run's files between its folder and its bucket. Where the run has no bucket, it does nothing.

    One rank uses it.
    """

    def __init__(self, order: Order) -> None:
        self._folder, self._address = order.folder, order.address
        location = parse_location(self._address)
        self._place = (
            Place(location.bucket, location.object)
            if location.bucket is not None and location.object is not None
            else None
        )

    def fetch(self) -> None:
        """Brings what an earlier process of the run left, unless the folder holds as much of it.

        Raises CheckpointError.
        """
        if self._place is None:
            return
        try:
            with cloud.said_plainly(self._place), cloud.connected() as client:
                bucket = client.bucket(self._place.bucket)
                for name in (RECORD, METRICS):
                    blob = bucket.get_blob(self._object(name), timeout=cloud.TIMEOUT, retry=cloud.RETRY)
                    path = self._folder / name
                    if blob is None or (path.exists() and path.stat().st_size >= blob.size):
                        continue
                    path.parent.mkdir(parents=True, exist_ok=True)
                    pending = path.with_name(f".{name}")
                    cloud.fetch(self._place.bucket, blob, pending)
                    pending.replace(path)
        except CloudError as error:
            raise CheckpointError(f"checkpoint.uri: {error}.", transient=error.transient) from error

    def after_commit(self) -> None:
        """Uploads the record and the metrics so far. A fault is no reason to stop: the next one mends it."""
        try:
            self._upload((RECORD, METRICS))
        except (CloudError, OSError) as error:
            _log.warning("the metrics could not be put beside the checkpoint: %s", error)

    def at_end(self, artifacts: Mapping[str, str]) -> dict[str, str]:
        """Uploads everything that came out, too: the addresses of `artifacts`, which are paths by kind.

        Raises CheckpointError.
        """
        if self._place is None:
            return dict(artifacts)
        paths = {kind: Path(path) for kind, path in artifacts.items()}
        files = [file for path in paths.values() for file in ([path], path.rglob("*"))[path.is_dir()]]
        names = [file.relative_to(self._folder).as_posix() for file in files if file.is_file()]
        try:
            self._upload((RECORD, METRICS, *names))
        except CloudError as error:
            raise CheckpointError(
                f"checkpoint.uri: {error}. Training has ended, and the exports are not there yet: the run "
                "goes on from its last checkpoint, and exports again.",
                transient=error.transient,
            ) from error
        return {
            kind: f"{self._address}/{path.relative_to(self._folder).as_posix()}"
            for kind, path in paths.items()
        }

    def _upload(self, names: Iterable[str]) -> None:
        if self._place is None:
            return
        with (
            tempfile.TemporaryDirectory() as folder,
            cloud.said_plainly(self._place, cloud.WRITING),
            cloud.connected() as client,
        ):
            bucket = client.bucket(self._place.bucket)
            for name in dict.fromkeys(names):
                file = self._folder / name
                if name == METRICS:
                    # As they are now: training writes on.
                    file = Path(shutil.copy(file, folder))
                cloud.replace(bucket, self._object(name), file)

    def _object(self, name: str) -> str:
        assert self._place is not None
        return f"{self._place.prefix}{name}"
