"""A run's tuned teacher where it is kept: whole where its marker is, and known by what it was tuned on."""

import hashlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitnet_crds.carried_out import carried_out
from bitnet_crds.locations import parse_location
from bitnet_crds.protocol import Order, tuned_teacher_address
from bitnet_crds.record import Report
from bitnet_trainer import cloud
from bitnet_trainer.checkpoint.local import flush
from bitnet_trainer.cloud import CloudError, Place
from bitnet_trainer.errors import CheckpointError
from bitnet_trainer.export.folder import save_tokenizer, write_folder

MARKER = "TUNED"
"""What is written last. It holds the hash of what was tuned."""


def tuning_of(order: Order) -> Order | None:
    """The order that tunes the teacher of an order's run, as it is carried out; None where none is tuned."""
    if order.plan.tuning is None:
        return None
    return carried_out(order.model_copy(update={"purpose": "TuneTeacher"}))


class _Marker(Report):
    """What stands in the marker."""

    tuning: str


class TunedTeacher:
    """A Hugging Face folder in the run's own, or in its bucket. A folder without a marker is none.

    Each method raises CheckpointError where the place does not do what it should.
    """

    def __init__(self, order: Order) -> None:
        """Of a run that tunes its teacher, whatever the order is for."""
        tuning = tuning_of(order)
        assert tuning is not None
        self.address = tuned_teacher_address(order)
        self._tuning, self._folder = tuning.training_hash, order.folder / "teacher"
        location = parse_location(self.address)
        self._place = (
            Place(location.bucket, location.object)
            if location.bucket is not None and location.object is not None
            else None
        )

    def hash_of(self, data_fingerprint: str) -> str:
        """Names what the run asks for: the teacher, its tuning's ledger and seed, and the text."""
        return hashlib.sha256(f"{self._tuning} {data_fingerprint}".encode()).hexdigest()[:16]

    def found(self) -> str | None:
        """The hash of the one that is there; None where none is, or its marker cannot be understood."""
        content = self._marker_here() if self._place is None else self._marker_in(self._place)
        try:
            return None if content is None else _Marker.model_validate_json(content).tuning
        except ValidationError:
            return None

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, hash_: str) -> None:
        """Writes it in the place of the one that may be there: everything first, the marker last.

        Args:
            model: whole, as it was trained.
            tokenizer: the one that its text was read by.
            hash_: `hash_of` that text.
        """

        def fill(staged: Path) -> None:
            model.save_pretrained(staged)
            save_tokenizer(tokenizer, model, staged)
            for file in staged.iterdir():
                flush(file)

        try:
            # Of a process that was killed in here. Nobody else writes it.
            for leftover in self._folder.parent.glob(f".{self._folder.name}-*"):
                shutil.rmtree(leftover)
            write_folder(self._folder, fill)
            flush(self._folder.parent)
            pending = self._folder / f".{MARKER}"
            pending.write_text(_Marker(tuning=hash_).model_dump_json())
            flush(pending)
            pending.replace(self._folder / MARKER)
            flush(self._folder)
            if self._place is not None:
                self._upload(self._place)
                shutil.rmtree(self._folder)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint.uri: the tuned teacher cannot be written to {self._folder} "
                f"({error.strerror or error}). Make it writable for the user that trains, or free some space."
            ) from error

    def _marker_here(self) -> bytes | None:
        path = self._folder / MARKER
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise CheckpointError(
                f"checkpoint.uri: {path} cannot be read ({error.strerror or error}). "
                "Make it readable for the user that trains."
            ) from error

    def _marker_in(self, place: Place) -> bytes | None:
        with _bucket(place, cloud.READING) as bucket:
            blob = bucket.get_blob(f"{place.prefix}{MARKER}", timeout=cloud.TIMEOUT, retry=cloud.RETRY)
            if blob is None:
                return None
            content: bytes = blob.download_as_bytes(timeout=cloud.TIMEOUT, retry=cloud.RETRY)
            return content

    def _upload(self, place: Place) -> None:
        """Replaces what is in the bucket, whose marker goes first: half a removal must not look whole."""
        writer = uuid.uuid4().hex
        with _bucket(place, cloud.WRITING) as bucket:
            old = bucket.list_blobs(prefix=place.prefix, timeout=cloud.TIMEOUT, retry=cloud.RETRY)
            for blob in sorted(old, key=lambda blob: blob.name != f"{place.prefix}{MARKER}"):
                cloud.delete(blob)
            for file in sorted(self._folder.iterdir(), key=lambda file: file.name == MARKER):
                cloud.upload(bucket, f"{place.prefix}{file.name}", file, writer)


@contextmanager
def _bucket(place: Place, access: cloud.Access) -> Iterator[Any]:
    """The bucket, of a client that lives as long; its faults are CheckpointErrors."""
    try:
        with cloud.said_plainly(place, access), cloud.connected() as client:
            yield client.bucket(place.bucket)
    except CloudError as error:
        raise CheckpointError(f"checkpoint.uri: {error}.", transient=error.transient) from error
