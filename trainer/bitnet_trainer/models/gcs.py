"""Models in Google Cloud Storage: copied to this machine whole, once for all its processes."""

import base64
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, Unauthorized
from google.api_core.retry import Retry
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage  # type: ignore[import-untyped]
from google.cloud.storage.exceptions import InvalidResponse  # type: ignore[import-untyped]
from google.cloud.storage.retry import DEFAULT_RETRY  # type: ignore[import-untyped]
from requests.exceptions import RequestException

from bitnet_trainer.errors import ModelUnavailable
from bitnet_trainer.models.folder import check_model_folder

CACHE_VARIABLE = "BITNET_MODEL_CACHE"
"""Environment variable that names the folder of the copies."""

TIMEOUT = (5.0, 15.0)
"""Seconds until a request is connected, and then between two of its packets."""
RETRY: Retry = DEFAULT_RETRY.with_timeout(20.0)
"""How each request is tried again: for this many seconds, and never longer than it then takes to fail."""
CHUNK_BYTES = 32 * 2**20
"""Fetched by one request, so that what is lost and tried again is never a whole model."""

_Checksum: Any = google_crc32c.Checksum  # which has no types

_CREDENTIALS = (
    "run with a service account that may read it (on GKE, workload identity), or name a key file in "
    "GOOGLE_APPLICATION_CREDENTIALS"
)
_READABLE = "give the service account the role roles/storage.objectViewer on the bucket"


@dataclass(frozen=True)
class _Place:
    """A folder, or one .gguf file, in a bucket."""

    bucket: str
    path: str

    def __str__(self) -> str:
        return f"gs://{self.bucket}/{self.path}"

    @property
    def is_file(self) -> bool:
        return self.path.endswith(".gguf")

    @property
    def prefix(self) -> str:
        """What the names of its objects begin with."""
        return self.path if self.is_file or not self.path else f"{self.path}/"


def local_copy(bucket: str, path: str) -> Path:
    """A copy of a model on this machine, fetched now unless it is there already.

    A copy is named by the generations of its objects: a model that was replaced in the bucket is fetched
    anew, and one that is replaced while it is fetched is an error, never a mixture. Processes of one machine
    fetch it once: the others wait for the first. Where storage cannot be reached it says so within a minute.

    Args:
        bucket: its name.
        path: of a Hugging Face folder, or of one .gguf file, in the bucket; of the former the files in the
            folder itself are fetched, without those in folders below it.

    Returns:
        The folder, or the .gguf file; it is to be read only.

    Raises:
        ModelUnavailable: no such bucket, nothing there that is a model, no permission, no way to storage, or
            no room here.
    """
    place = _Place(bucket, path.strip("/"))
    try:
        # The project plays no part in reading; without one given the client insists on finding it.
        with _said_plainly(place), storage.Client(project="-") as client:
            folder = _fetched_once(place, _objects(client, place))
    except OSError as error:
        raise ModelUnavailable(
            f"the copy of {place} cannot be kept in {_root()} ({error.strerror or error}); "
            f"make room there, or name another folder in {CACHE_VARIABLE}"
        ) from error
    return folder / place.path.rsplit("/", 1)[-1] if place.is_file else folder


def _root() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "bitnet-operator" / "models")


@contextmanager
def _said_plainly(place: _Place) -> Iterator[None]:
    """Turns what Google's client raises into ModelUnavailable."""

    def problem(what: str, error: Exception, mend: str) -> ModelUnavailable:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        return ModelUnavailable(f"{place}: {what} ({reason}); {mend}")

    try:
        yield
    except (GoogleAuthError, Unauthorized) as error:
        raise problem("there are no credentials for it that hold", error, _CREDENTIALS) from error
    except Forbidden as error:
        raise problem(f"the bucket {place.bucket} may not be read", error, _READABLE) from error
    except NotFound as error:
        raise problem(
            f"there is no bucket {place.bucket}, or an object of it went while it was fetched",
            error,
            "correct the name, and let nobody write there while runs begin",
        ) from error
    except (GoogleAPIError, InvalidResponse, RequestException) as error:
        raise problem(
            "storage cannot be reached, or does not answer",
            error,
            "check this machine's way to it, and try again",
        ) from error


def _objects(client: Any, place: _Place) -> list[Any]:
    """The blobs that make up the model, each with its generation. Raises ModelUnavailable for no model."""
    listed = client.list_blobs(place.bucket, prefix=place.prefix, delimiter="/", timeout=TIMEOUT, retry=RETRY)
    # A name that ends in a slash only stands for a folder.
    blobs = [blob for blob in listed if not blob.name.endswith("/")]
    if place.is_file:
        blobs = [blob for blob in blobs if blob.name == place.path]
    if not blobs:
        raise ModelUnavailable(
            f"there is nothing at {place} (the bucket {place.bucket} is there); correct the path: it names a "
            "Hugging Face folder, or one .gguf file"
        )
    if not place.is_file:
        check_model_folder(str(place), str(place), {_file_name(blob) for blob in blobs})
    return sorted(blobs, key=_file_name)


def _file_name(blob: Any) -> str:
    return str(blob.name).rsplit("/", 1)[-1]


def _fetched_once(place: _Place, blobs: list[Any]) -> Path:
    content = repr([(place.bucket, blob.name, blob.generation) for blob in blobs])
    copy = _root() / hashlib.sha256(content.encode()).hexdigest()[:32]
    if copy.is_dir():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    with _locked(copy.with_suffix(".lock")):
        if not copy.is_dir():
            partial = copy.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            partial.mkdir()
            for blob in blobs:
                _fetch(place, blob, partial / _file_name(blob))
            partial.rename(copy)
    return copy


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock among the processes of this machine; it ends with the process, however that ends.

    Who had to wait for one that failed fails with its words: each trying in turn, they would take for ever.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            if said := file.read():
                raise ModelUnavailable(said) from None
        file.truncate(0)
        try:
            yield
        except Exception as error:
            file.write(str(error))
            raise


def _fetch(place: _Place, blob: Any, path: Path) -> None:
    """Fetches a blob, of the generation that was listed, into a new file."""
    if not blob.size:
        path.touch()  # a range of nothing cannot be asked for
        return
    blob.chunk_size = CHUNK_BYTES
    blob.download_to_filename(str(path), timeout=TIMEOUT, retry=RETRY)
    # The client checks no download that it makes in chunks.
    checksum = _Checksum()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            checksum.update(chunk)
    if base64.b64encode(checksum.digest()).decode() != blob.crc32c:
        raise ModelUnavailable(
            f"gs://{place.bucket}/{blob.name} did not arrive as it is stored: its CRC32C is not the "
            f"{blob.crc32c} that storage names; check this machine's way to storage, and try again"
        )
