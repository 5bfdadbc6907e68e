"""The records in files: a .txt file is one, in others each line or row is; corrupt ones are told apart."""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_crds.record import Report
from bitnet_trainer.errors import DataUnavailable

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
"""What is read, by the end of a file's name."""

_NAMED = 5
"""So many corrupt records are kept by name."""
_ROWS_AT_ONCE = 256
_BYTES_AT_ONCE = 1 << 20


class Record(NamedTuple):
    """One document."""

    place: str
    """Where in its file it stands, such as `, line 3`."""
    text: str
    fields: Mapping[str, Any]
    """All that it says, `text` included; of a .parquet file's columns `text` and `label` alone."""


class Reading(Report):
    """How the reading of a source went."""

    records: int
    """How many were read, corrupt ones included, blank lines not."""
    corrupt: int
    """How many of them were left out because they could not be read."""
    first: tuple[str, ...] = ()
    """The first of those: where it stands, and what is wrong with it."""

    def check(self, name: str, allowed: Fraction) -> None:
        """Raises DataUnavailable where more than the allowed share of the records is corrupt."""
        if self.corrupt > allowed * self.records:
            raise DataUnavailable(
                f"{self.sentence(name)} That is {self.corrupt / self.records:.3g} of them, and "
                f"data.corruptShare allows {float(allowed):.3g}: mend them, or raise it."
            )

    def sentence(self, name: str) -> str:
        """What was left out, in words."""
        return (
            f"source {name!r}: {self.corrupt:,} of {self.records:,} records cannot be read. The first: "
            f"{' '.join(self.first)}"
        )


class Tally:
    """Counts the records of a source while it is read."""

    def __init__(self) -> None:
        self._records, self._corrupt = 0, 0
        self._first: list[str] = []

    def add(self, wrong: str | None = None) -> None:
        """Counts a record, and keeps what is wrong with it if something is."""
        self._records += 1
        if wrong is not None:
            self._corrupt += 1
            if len(self._first) < _NAMED:
                self._first.append(wrong)

    def reading(self) -> Reading:
        """What has been counted."""
        return Reading(records=self._records, corrupt=self._corrupt, first=tuple(self._first))


class _Corrupt(Exception):
    """What is wrong with one record, and the mend."""


def records(name: str, file: Path, tally: Tally) -> Iterator[Record]:
    """The records of a file of source `name`, one at a time, less those that are corrupt; all are counted.

    A line or row is corrupt if it is no JSON object, has no string `text`, or has characters that stand for
    nothing. Raises DataUnavailable for a file that cannot be opened or unpacked.
    """
    for place, fields in _READERS[_suffix(file)](name, file):
        try:
            record = _record(place, fields())
        except _Corrupt as error:
            tally.add(f"{file}{place} {error}")
        else:
            tally.add()
            yield record


def unreadable(name: str, path: Path, error: OSError) -> DataUnavailable:
    """What to raise where the system keeps a file back."""
    return DataUnavailable(
        f"source {name!r}: {path} cannot be read ({error.strerror or error}). "
        "Make it readable for the user that trains."
    )


_Fields = Callable[[], Any]
"""Reads what a record says; raises _Corrupt."""


def _suffix(file: Path) -> str:
    return next(suffix for suffix in SUFFIXES if file.name.endswith(suffix))


def _record(place: str, fields: Any) -> Record:
    text = fields.get("text") if isinstance(fields, Mapping) else None
    if not isinstance(text, str):
        raise _Corrupt('has no string `text`. Write lines such as {"text": "Once upon a time"}.')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Corrupt(
            f"has half a surrogate pair in its `text` (character {error.start} is "
            f"\\u{ord(text[error.start]):04x}). Write both halves, or leave it out."
        ) from error
    return Record(place, text, fields)


def _document(name: str, file: Path) -> Iterator[tuple[str, _Fields]]:
    """A .txt file as a record."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise unreadable(name, file, error) from error
    yield "", lambda: {"text": _decoded(content, file)}


def _lines(name: str, file: Path) -> Iterator[tuple[str, _Fields]]:
    """The lines of a .jsonl file, packed or not, that are not blank."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            # Lines of bytes end at a newline alone; those of str at U+2028 too, which JSON may hold.
            for number, line in enumerate(opened, start=1):
                if line.removeprefix(codecs.BOM_UTF8).strip():
                    yield f", line {number}", partial(_json, line, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataUnavailable(
            f"source {name!r}: {file} cannot be unpacked ({error}). Copy it anew, or pack it with gzip."
        ) from error
    except OSError as error:
        raise unreadable(name, file, error) from error


def _rows(name: str, file: Path) -> Iterator[tuple[str, _Fields]]:
    """The rows of a .parquet file, a few at a time."""
    # It takes longer to import than all else here, and most runs read no such file.
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        opened = file.open("rb")
    except OSError as error:
        raise unreadable(name, file, error) from error
    number = 0
    try:
        with opened, closing(parquet.ParquetFile(opened, buffer_size=_BYTES_AT_ONCE)) as table:
            columns = [column for column in ("text", "label") if column in table.schema_arrow.names]
            if "text" not in columns:
                raise DataUnavailable(
                    f"source {name!r}: {file} has no column `text`, and has "
                    f"{', '.join(table.schema_arrow.names) or 'none'}. Rename the one that holds the text."
                )
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False):
                for row in range(batch.num_rows):
                    number += 1
                    yield f", row {number}", partial(_row, batch, row)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataUnavailable(
            f"source {name!r}: {file} is not Parquet that can be read after row {number} ({error}). "
            "Copy it anew."
        ) from error


def _row(batch: Any, row: int) -> dict[str, Any]:
    try:
        return {name: batch.column(name)[row].as_py() for name in batch.schema.names}
    except UnicodeDecodeError as error:
        raise _Corrupt(f"is not UTF-8 (byte {error.start}). Write it anew.") from error


def _json(line: bytes, file: Path) -> Any:
    text = _decoded(line, file)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # of long numbers and deep nesting too
        raise _Corrupt(
            f"is not JSON that can be read ({getattr(error, 'msg', error)}). Write one object a line."
        ) from error


def _decoded(content: bytes, file: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Corrupt(
            f"is not UTF-8 (byte {error.start} is 0x{content[error.start]:02x}). "
            f"Convert it, as in `iconv -f latin1 -t utf-8 {file.name}`."
        ) from error


_READERS: Mapping[str, Callable[[str, Path], Iterator[tuple[str, _Fields]]]] = {
    ".txt": _document,
    ".jsonl": _lines,
    ".jsonl.gz": _lines,
    ".parquet": _rows,
}
