"""Where the text of a source comes from, and how its records are come by."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bitnet_trainer.data.files import content_of, text_files
from bitnet_trainer.data.records import Record, Tally, records


@dataclass(frozen=True)
class SourceText:
    """One source as the run asks for it."""

    name: str
    origin: Path
    """A file, or a folder of files."""
    weight: float = 1.0
    field: str = "text"
    """Key or column that holds the text of a record."""


@dataclass(frozen=True)
class Documents:
    """The records of a source that was found, not read yet."""

    identity: str
    """Equal where the records are."""
    read: Callable[[Tally], Iterator[Record]]
    """Reads them in their order, and counts them; may raise DataUnavailable."""


def find(text: SourceText, own: Path) -> Documents:
    """The documents of a source.

    A .txt file is one document, each line of a .jsonl file and each row of a .parquet file is; both may be
    packed. A folder is read in the order of the names in it; hidden files and folders are left out, and the
    run's own folder `own`. Raises DataUnavailable for a source that is missing.
    """
    files = text_files(text.name, text.origin, own)

    def read(tally: Tally) -> Iterator[Record]:
        for file in files:
            yield from records(text.name, file, tally, text.field)

    return Documents(f"{content_of(text.name, files)} {text.field}", read)
