"""Google Cloud Storage: its client, its faults said plainly, and local copies of what lies there."""

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any

import google_crc32c
from google.api_core.exceptions import (
    Forbidden,
    GoogleAPIError,
    NotFound,
    PreconditionFailed,
    RetryError,
    Unauthorized,
)
from google.api_core.retry import Retry
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.cloud import storage  # type: ignore[import-untyped]
from google.cloud.storage.exceptions import InvalidResponse  # type: ignore[import-untyped]
from google.cloud.storage.retry import DEFAULT_RETRY, _should_retry  # type: ignore[import-untyped]
from requests.exceptions import RequestException

from bitnet_trainer.errors import TrainerError

TIMEOUT = (5.0, 15.0)
"""Seconds until a request is connected, and then between two of its packets."""
RETRY: Retry = DEFAULT_RETRY.with_timeout(20.0)
"""How each request is tried again: for this many seconds, and never longer than it then takes to fail."""
UPLOAD_TIMEOUT = (5.0, 60.0)
UPLOAD_RETRY: Retry = DEFAULT_RETRY.with_timeout(300.0)
"""The same for what is uploaded while training goes on, which has time."""
CHUNK_BYTES = 32 * 2**20
"""Moved by one request, so that what is lost and tried again is never a whole file."""

_WRITER = "bitnet-writer"
"""Metadata of an object that names the process that wrote it."""

_Checksum: Any = google_crc32c.Checksum  # which has no types


@dataclass(frozen=True)
class Access:
    """What is done with a bucket, in the words of errors."""

    verb: str
    role: str
    """What a service account needs for it, on the bucket."""
    gone: str
    """What else a 404 may mean than that there is no bucket, and its mend."""


READING = Access(
    "read",
    "roles/storage.objectViewer",
    "or an object of it went while it was fetched; correct the name, and let nobody write there while runs "
    "begin",
)
WRITING = Access(
    "written", "roles/storage.objectUser", "or an object of it went; correct the name, or make the bucket"
)


class CloudError(TrainerError):
    """Storage did not do what it was asked; whoever asked says what that means for them."""


class NoCredentialsError(CloudError):
    """This machine has no credentials for storage: none were refused, and none can be renewed later."""


class OccupiedError(CloudError):
    """Where something was to be written once, another process has written."""


@dataclass(frozen=True)
class Place:
    """A file, or a folder of files, in a bucket."""

    bucket: str
    path: str
    """Without slashes at its ends; empty for the whole bucket."""
    is_file: bool = False

    def __str__(self) -> str:
        return f"gs://{self.bucket}/{self.path}"

    @property
    def prefix(self) -> str:
        """What the names of its objects begin with."""
        return self.path if self.is_file or not self.path else f"{self.path}/"


@dataclass(frozen=True)
class Cache:
    """Where copies are kept on this machine."""

    variable: str
    """Environment variable that names the folder."""
    folder: str
    """Its name in ~/.cache/bitnet-operator where the variable is not set."""

    @property
    def root(self) -> Path:
        """The folder of the copies."""
        named = os.environ.get(self.variable)
        return Path(named) if named else Path.home() / ".cache" / "bitnet-operator" / self.folder


def connected() -> Any:
    """A client of Cloud Storage, to be closed: `with connected() as client`."""
    # The project plays no part in reading and writing; without one given the client insists on finding it.
    return storage.Client(project="-")


def local_copy(
    place: Place,
    cache: Cache,
    check: Callable[[Sequence[str]], None] = lambda _: None,
    *,
    nested: bool = False,
    wanted: Callable[[str], bool] = lambda _: True,
) -> Path:
    """A copy of a file or folder on this machine, fetched now unless it is there already.

    A copy is named by the generations of its objects: what was replaced in the bucket is fetched anew, and
    what is replaced while it is fetched is an error, never a mixture. Processes of one machine fetch it once:
    the others wait for the first. Where storage cannot be reached it says so within a minute.

    Args:
        place: of the file or the folder.
        cache: where the copy goes.
        check: called with the names of a folder's files, relative to it, before any is fetched; what it
            raises is raised.
        nested: whether files in folders below the folder are fetched too.
        wanted: told the name of each file of a folder, relative to it: whether it is fetched.

    Returns:
        The file or the folder; it is to be read only.

    Raises:
        CloudError: no such bucket, nothing there, no permission, no way to storage, or no room here.
    """
    try:
        folder = copied_to(place, cache.root, check, nested=nested, wanted=wanted)
    except OSError as error:
        raise CloudError(
            f"the copy of {place} cannot be kept in {cache.root} ({error.strerror or error}); "
            f"make room there, or name another folder in {cache.variable}"
        ) from error
    return folder / place.path.rsplit("/", 1)[-1] if place.is_file else folder


def copied_to(
    place: Place,
    root: Path,
    check: Callable[[Sequence[str]], None] = lambda _: None,
    *,
    nested: bool = False,
    wanted: Callable[[str], bool] = lambda _: True,
) -> Path:
    """As `local_copy`, with the copy in a folder of its own in `root`; gives that. OSError where there is no
    room."""
    with said_plainly(place), connected() as client:
        files = _listed(client, place, nested)
        check([name for name, _ in files])
        return _fetched_once(place, [file for file in files if place.is_file or wanted(file[0])], root)


@contextmanager
def said_plainly(place: Place, access: Access = READING) -> Iterator[None]:
    """Turns what Google's client raises inside, while it works on `place`, into CloudError."""

    def problem(what: str, error: Exception, mend: str, kind: type[CloudError] = CloudError) -> CloudError:
        # Without the request that follows.
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        return kind(f"{place}: {what} ({reason}); {mend}", transient=_is_transient(error))

    try:
        yield
    except (GoogleAuthError, Unauthorized) as error:
        # The client tells a network that is away while it renews a token as one of credentials.
        lacking = _none_found(error)
        raise problem(
            f"there are no credentials for it{'' if lacking else ' that hold'}",
            error,
            f"run with a service account whose role is {access.role} (on GKE, workload identity), or name a "
            "key file in GOOGLE_APPLICATION_CREDENTIALS",
            NoCredentialsError if lacking else CloudError,
        ) from error
    except Forbidden as error:
        raise problem(
            f"the bucket {place.bucket} may not be {access.verb}",
            error,
            f"give the service account the role {access.role} on the bucket",
        ) from error
    except NotFound as error:
        what, _, mend = access.gone.partition("; ")
        raise problem(f"there is no bucket {place.bucket}, {what}", error, mend) from error
    except (GoogleAPIError, InvalidResponse, RequestException) as error:
        raise problem(
            "storage cannot be reached, or does not answer",
            error,
            "check this machine's way to it, and try again",
        ) from error


def _none_found(error: Exception) -> bool:
    """Whether nothing here offers credentials: no key file, no login of gcloud, and no metadata server, or a
    machine that has no service account."""
    if isinstance(error, DefaultCredentialsError):
        # It is raised, too, for a key file that is named and cannot be read: that is a mistake, to be told.
        return "credentials were not found" in str(error)
    answer = next(iter(getattr(error.__cause__, "args", ())[1:]), None)
    return getattr(answer, "status", None) == HTTPStatus.NOT_FOUND


def _is_transient(error: Exception) -> bool:
    """Whether another try may succeed: the client would make one, or did until its time was over."""
    if isinstance(error, CloudError):
        return error.transient
    passing = isinstance(error, RetryError) or (isinstance(error, GoogleAuthError) and error.retryable)
    return passing or bool(_should_retry(error))


def crc32c_of(file: Path) -> str:
    """A file's CRC32C as storage names it: base64 of its four bytes, the highest first."""
    checksum = _Checksum()
    with file.open("rb") as content:
        while chunk := content.read(2**20):
            checksum.update(chunk)
    return base64.b64encode(checksum.digest()).decode()


def fetch(bucket: str, blob: Any, path: Path) -> None:
    """Fetches a blob, of the generation that was listed, into a new file. Raises CloudError for damage."""
    if not blob.size:
        path.touch()  # a range of nothing cannot be asked for
        return
    blob.chunk_size = CHUNK_BYTES
    blob.download_to_filename(str(path), timeout=TIMEOUT, retry=RETRY)
    # The client checks no download that it makes in chunks.
    if crc32c_of(path) != blob.crc32c:
        raise CloudError(
            f"gs://{bucket}/{blob.name} did not arrive as it is stored: its CRC32C is not the "
            f"{blob.crc32c} that storage names; check this machine's way to storage, and try again",
            transient=True,
        )


def upload(bucket: Any, name: str, file: Path, writer: str) -> Any:
    """Uploads a file to where no object is: the blob, with its generation, size and CRC32C.

    In chunks, each tried again for UPLOAD_RETRY's time. Storage takes it only where nothing is: of two
    writers the second one is refused.

    Args:
        bucket: of the client.
        name: of the object.
        file: what is uploaded.
        writer: names this process, so that an upload whose answer was lost is known for its own.

    Raises:
        OccupiedError: something is there that this process did not write.
        CloudError: it did not arrive as it is here.
    """
    blob = bucket.blob(name, chunk_size=CHUNK_BYTES)
    blob.metadata = {_WRITER: writer}
    checksum = crc32c_of(file)
    try:
        blob.upload_from_filename(
            str(file),
            content_type="application/octet-stream",
            if_generation_match=0,
            timeout=UPLOAD_TIMEOUT,
            retry=UPLOAD_RETRY,
            checksum="crc32c",
            crc32c_checksum_value=checksum,
        )
    except PreconditionFailed as error:
        blob.reload(timeout=TIMEOUT, retry=RETRY)
        if (blob.metadata or {}).get(_WRITER) != writer or blob.crc32c != checksum:
            raise OccupiedError(
                f"gs://{bucket.name}/{name} is there already, and another process wrote it; see that only "
                "one trains this run"
            ) from error
    if blob.crc32c != checksum:
        delete(blob)
        raise CloudError(
            f"gs://{bucket.name}/{name} did not arrive as it is here: storage names the CRC32C {blob.crc32c} "
            f"and not {checksum}; check this machine's disk and its way to storage, and try again",
            transient=True,
        )
    return blob


def replace(bucket: Any, name: str, file: Path) -> None:
    """Uploads a file in place of the object that may be there."""
    bucket.blob(name, chunk_size=CHUNK_BYTES).upload_from_filename(
        str(file), timeout=UPLOAD_TIMEOUT, retry=UPLOAD_RETRY, checksum="crc32c"
    )


def delete(blob: Any) -> None:
    """Deletes an object, of the generation that was listed; one that went meanwhile is gone as well."""
    with contextlib.suppress(NotFound, PreconditionFailed):
        blob.delete(if_generation_match=blob.generation, timeout=TIMEOUT, retry=RETRY)


def _listed(client: Any, place: Place, nested: bool) -> list[tuple[str, Any]]:
    """The blobs of a place by their names in it, each with its generation. Raises CloudError for none."""
    listed = client.list_blobs(
        place.bucket, prefix=place.prefix, delimiter=None if nested else "/", timeout=TIMEOUT, retry=RETRY
    )
    # A name that ends in a slash only stands for a folder.
    blobs = [blob for blob in listed if not blob.name.endswith("/")]
    if place.is_file:
        files = [(place.path.rsplit("/", 1)[-1], blob) for blob in blobs if blob.name == place.path]
    else:
        files = [(blob.name.removeprefix(place.prefix), blob) for blob in blobs]
    if not files:
        raise CloudError(
            f"there is nothing at {place} (the bucket {place.bucket} is there); correct the path"
        )
    for name, _ in files:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise CloudError(f"{place} holds an object named {name!r}, which no folder can; rename it")
    return sorted(files, key=lambda file: file[0])


def _fetched_once(place: Place, files: list[tuple[str, Any]], root: Path) -> Path:
    content = repr([(place.bucket, blob.name, blob.generation) for _, blob in files])
    copy = root / hashlib.sha256(content.encode()).hexdigest()[:32]
    if copy.is_dir():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    with _locked(copy.with_suffix(".lock")):
        if not copy.is_dir():
            partial = copy.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            partial.mkdir()
            for name, blob in files:
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                fetch(place.bucket, blob, path)
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
                message, transient = json.loads(said)
                raise CloudError(message, transient=transient) from None
        file.truncate(0)
        try:
            yield
        # Anything at all: who waits shall hear of it, whatever it is; and it goes on upwards.
        except Exception as error:
            file.write(json.dumps((str(error), _is_transient(error))))
            raise
