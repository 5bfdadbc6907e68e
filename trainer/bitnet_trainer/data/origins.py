"""Where the text of a source comes from, and how its records are come by."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bitnet_trainer import cloud
from bitnet_trainer.cloud import Cache, CloudError, Place
from bitnet_trainer.data.files import content_of, is_text, text_files
from bitnet_trainer.data.hub import Dataset, documents_of
from bitnet_trainer.data.records import SUFFIXES, Record, Tally, TextFile, records
from bitnet_trainer.errors import DataUnavailable

CACHE = Cache("BITNET_TEXT_CACHE", "text")
"""Where copies of what lies in buckets are kept."""

Origin = Path | Place | Dataset
"""A file or a folder, here or in a bucket, or a dataset of the hub."""


@dataclass(frozen=True)
class SourceText:
    """One source as the run asks for it."""

    name: str
    origin: Origin
    weight: float = 1.0
    field: str = "text"
    """Key or column that holds the text of a record."""
    sequences: int | None = None
    """How many of its sequences are trained on at most, where that is known."""

    @property
    def revision(self) -> str | None:
        """Of the hub's, the commit."""
        return self.origin.revision if isinstance(self.origin, Dataset) else None


@dataclass(frozen=True)
class Documents:
    """The records of a source that was found, not read yet."""

    identity: str
    """Equal where the records are."""
    read: Callable[[Tally], Iterator[Record]]
    """Reads them in their order, and counts them; may raise DataUnavailable."""
    streamed: bool = False
    """Whether what is not read is not fetched."""


def place_in(bucket: str, path: str) -> Place:
    """A file or a folder of text in a bucket."""
    return Place(bucket, path.strip("/"), is_file=path.endswith(SUFFIXES))


def find(text: SourceText, own: Path) -> Documents:
    """The documents of a source.

    A .txt file is one document, each line of a .jsonl file and each row of a .parquet file or of a dataset
    is; files of the first two kinds may be packed. A folder is read in the order of the names in it; hidden
    files and folders are left out, and the run's own folder `own`. What is in a bucket is copied to this
    machine. Raises DataUnavailable for a source that is missing.
    """
    if isinstance(text.origin, Dataset):
        origin = text.origin
        return Documents(
            f"{origin!r} {text.field}",
            lambda tally: documents_of(text.name, origin, text.field, tally),
            streamed=True,
        )
    files = _files(text, own)

    def read(tally: Tally) -> Iterator[Record]:
        for file in files:
            yield from records(file, tally, text.field)

    return Documents(f"{content_of(files)} {text.field}", read)


def _files(text: SourceText, own: Path) -> list[TextFile]:
    assert not isinstance(text.origin, Dataset)
    if isinstance(text.origin, Path):
        return [TextFile(text.name, path, str(path)) for path in text_files(text.name, text.origin, own)]
    try:
        copy = cloud.local_copy(text.origin, CACHE, nested=True, wanted=is_text)
    except CloudError as error:
        raise DataUnavailable(f"source {text.name!r}: {error}.", transient=error.transient) from error
    if text.origin.is_file:
        return [TextFile(text.name, copy, str(text.origin))]
    return [
        TextFile(text.name, path, f"gs://{text.origin.bucket}/{text.origin.prefix}{path.relative_to(copy)}")
        for path in text_files(text.name, copy, own, str(text.origin))
    ]
