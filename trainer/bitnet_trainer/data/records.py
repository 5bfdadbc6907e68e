"""The records in files: a .txt file is one, in others each line or row is; corrupt ones are told apart."""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_crds.record import Report
from bitnet_trainer.errors import DataUnavailable

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
"""What is read, by the end of a file's name."""

_NAMED = 5
"""So many corrupt records are kept by name."""
_LONGEST_KEY = 60
ROWS_AT_ONCE = 256
"""Of a column format, so that it is never whole in memory."""
_BYTES_AT_ONCE = 1 << 20


class Record(NamedTuple):
    """One document."""

    place: str
    """Where it stands, such as `/text/a.jsonl, line 3`."""
    text: str
    fields: Mapping[str, Any]
    """All that it says, its text included; of a column format the text's column and `label` alone."""


@dataclass(frozen=True)
class TextFile:
    """A file of a source."""

    source: str
    """Name of the source."""
    path: Path
    shown: str
    """As errors name it: its path, or where it was copied from."""

    def __str__(self) -> str:
        return self.shown

    @property
    def suffix(self) -> str:
        """The end of its name, one of SUFFIXES."""
        return next(suffix for suffix in SUFFIXES if self.path.name.endswith(suffix))

    def broken(self, what: str, mend: str) -> DataUnavailable:
        """What to raise where it cannot be used."""
        return DataUnavailable(f"source {self.source!r}: {self} {what}. {mend}")

    def unreadable(self, error: OSError) -> DataUnavailable:
        """What to raise where the system keeps it back."""
        return unreadable(self.source, self.shown, error)


class Reading(Report):
    """How the reading of a source went."""

    records: int
    """How many were read, corrupt ones included, blank lines not."""
    corrupt: int
    """How many of them were left out because they could not be read."""
    first: tuple[str, ...] = ()
    """The first of those: where it stands, and what is wrong with it."""
    revision: str | None = None
    """Commit of the hub's dataset that was read; none of what is in files."""

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

    def reading(self, revision: str | None = None) -> Reading:
        """What has been counted, of a commit."""
        return Reading(
            records=self._records, corrupt=self._corrupt, first=tuple(self._first), revision=revision
        )


class _Corrupt(Exception):
    """What is wrong with one record, and the mend."""


Fields = Callable[[], Any]
"""Reads what a record says; raises an error of this module where nothing can be made of it."""


def records(file: TextFile, tally: Tally, field: str = "text") -> Iterator[Record]:
    """The records of a file, one at a time, less those that are corrupt; all are counted.

    The text is in `field`; a .txt file is text as a whole. A line or row is corrupt if it is no JSON object,
    has no string there, or has characters that stand for nothing. Raises DataUnavailable for a file that
    cannot be opened or unpacked.
    """
    yield from sound(_READERS[file.suffix](file, field), tally, field)


def sound(found: Iterable[tuple[str, Fields]], tally: Tally, field: str) -> Iterator[Record]:
    """Of what is found at each place, the records that are not corrupt; all are counted."""
    for place, fields in found:
        try:
            record = _record(place, fields(), field)
        except _Corrupt as error:
            tally.add(f"{place} {error}")
        else:
            tally.add()
            yield record


def unreadable(name: str, path: object, error: OSError) -> DataUnavailable:
    """What to raise where the system keeps a file back."""
    return DataUnavailable(
        f"source {name!r}: {path} cannot be read ({error.strerror or error}). "
        "Make it readable for the user that trains."
    )


def _record(place: str, fields: Any, field: str) -> Record:
    text = fields.get(field) if isinstance(fields, Mapping) else None
    if not isinstance(text, str):
        others = [key for key in fields if key != field] if isinstance(fields, Mapping) else []
        raise _Corrupt(
            f"has no string `{field}`{f', and has {_some(others)}' if others else ''}. "
            f'Write lines such as {{"{field}": "Once upon a time"}}, or name another field.'
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Corrupt(
            f"has half a surrogate pair in its `{field}` (character {error.start} is "
            f"\\u{ord(text[error.start]):04x}). Write both halves, or leave it out."
        ) from error
    return Record(place, text, fields)


def _some(keys: list[Any]) -> str:
    """The first keys of a record, as few as a sentence holds."""
    return ", ".join(f"`{str(key)[:_LONGEST_KEY]}`" for key in keys[:_NAMED])


def _document(file: TextFile, field: str) -> Iterator[tuple[str, Fields]]:
    """A .txt file, packed or not, as a record."""
    with _unpacked(file) as opened:
        content = opened.read()
    yield str(file), lambda: {field: _decoded(content, file)}


def _lines(file: TextFile, _: str) -> Iterator[tuple[str, Fields]]:
    """The lines of a .jsonl file, packed or not, that are not blank."""
    with _unpacked(file) as opened:
        # Lines of bytes end at a newline alone; those of str at U+2028 too, which JSON may hold.
        for number, line in enumerate(opened, start=1):
            if line.removeprefix(codecs.BOM_UTF8).strip():
                yield f"{file}, line {number}", partial(_json, line, file)


@contextmanager
def _unpacked(file: TextFile) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file as they were before it was packed."""
    try:
        if file.suffix.endswith((".gz", ".zst")) and not file.path.stat().st_size:
            raise file.broken("is empty, which no packer leaves", "Copy it anew.")
        if file.suffix.endswith(".gz"):
            with gzip.open(file.path) as opened:
                yield opened
        elif file.suffix.endswith(".zst"):
            import pyarrow  # type: ignore[import-untyped]  # takes longer to import than all else here

            with file.path.open("rb") as packed, pyarrow.CompressedInputStream(packed, "zstd") as unpacked:
                yield io.BufferedReader(unpacked, _BYTES_AT_ONCE)
        else:
            with file.path.open("rb") as plain:
                yield plain
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _not_packed(file, error, "gzip") from error
    except OSError as error:
        # The system's errors have a number, and pyarrow's have none.
        if error.errno is None:
            raise _not_packed(file, error, "zstd") from error
        raise file.unreadable(error) from error


def _not_packed(file: TextFile, error: Exception, packer: str) -> DataUnavailable:
    return file.broken(f"cannot be unpacked ({error})", f"Copy it anew, or pack it with {packer}.")


def _rows(file: TextFile, field: str) -> Iterator[tuple[str, Fields]]:
    """The rows of a .parquet file, a few at a time."""
    # It takes longer to import than all else here, and most runs read no such file.
    import pyarrow
    from pyarrow import parquet

    try:
        opened = file.path.open("rb")
    except OSError as error:
        raise file.unreadable(error) from error
    number = 0
    try:
        with opened, closing(parquet.ParquetFile(opened, buffer_size=_BYTES_AT_ONCE)) as table:
            columns = columns_of(file.source, str(file), table.schema_arrow.names, field)
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False):
                for row in range(batch.num_rows):
                    number += 1
                    yield f"{file}, row {number}", partial(row_of, batch, row)
    except (pyarrow.ArrowException, OSError) as error:
        what = f"is not Parquet that can be read after row {number} ({error})"
        raise file.broken(what, "Copy it anew.") from error


def columns_of(name: str, place: str, there: Sequence[str], field: str) -> list[str]:
    """The columns to read of those that are there. Raises DataUnavailable where the text's is not."""
    if field not in there:
        raise DataUnavailable(
            f"source {name!r}: {place} has no column `{field}`, and has {', '.join(there) or 'none'}. "
            "Name the one that holds the text in the source's `field`."
        )
    return [column for column in dict.fromkeys((field, "label")) if column in there]


def row_of(table: Any, row: int) -> dict[str, Any]:
    """A row of an Arrow table or batch."""
    try:
        return {name: table.column(name)[row].as_py() for name in table.schema.names}
    except UnicodeDecodeError as error:
        raise _Corrupt(f"is not UTF-8 (byte {error.start}). Write it anew.") from error


def _json(line: bytes, file: TextFile) -> Any:
    text = _decoded(line, file)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # of long numbers and deep nesting too
        raise _Corrupt(
            f"is not JSON that can be read ({getattr(error, 'msg', error)}). Write one object a line."
        ) from error


def _decoded(content: bytes, file: TextFile) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Corrupt(
            f"is not UTF-8 (byte {error.start} is 0x{content[error.start]:02x}). "
            f"Convert it, as in `iconv -f latin1 -t utf-8 {file.path.name}`."
        ) from error


_READERS: Mapping[str, Callable[[TextFile, str], Iterator[tuple[str, Fields]]]] = {
    ".txt": _document,
    ".txt.gz": _document,
    ".jsonl": _lines,
    ".jsonl.gz": _lines,
    ".jsonl.zst": _lines,
    ".parquet": _rows,
}
