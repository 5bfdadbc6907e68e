"""Text on disk: the files of a source become one stream of tokens, tokenised once and kept in a cache."""

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bitnet_trainer.data.records import SUFFIXES, Reading, Tally, records, unreadable
from bitnet_trainer.errors import DataUnavailable

Tokens = npt.NDArray[np.uint32]

_CACHE_FORMAT = "2"
_LONGEST_PIECE = 1 << 20
"""Characters tokenised at once. A longer document is cut after a newline, to bound the memory it takes."""
_READ_AT_ONCE = 1 << 20
"""Bytes."""
_KINDS = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that data preparation needs."""

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a document."""

    def __call__(self, text: list[str], *, add_special_tokens: bool, return_attention_mask: bool) -> Any:
        """A mapping whose `input_ids` holds one list of token ids a text."""

    def get_vocab(self) -> dict[str, int]:
        """Token ids by token."""


class Kept(NamedTuple):
    """A source that has been tokenised."""

    tokens: Tokens
    """(N,), mapped from the cache."""
    reading: Reading
    """What was read for them."""


def open_source(
    name: str, path: Path, tokenizer: Tokenizer, cache: Path, corrupt_share: Fraction = Fraction(0)
) -> Kept:
    """The tokens of one source, (N,), each document followed by the tokenizer's end-of-text token.

    `path` is a .txt file (one document), a .jsonl or .jsonl.gz file (a document a line, in its `text` field),
    a .parquet file (a document a row, in its column `text`) or a folder of them, read in the order of their
    names; hidden files and folders in it are left out, and the run's own folder, which is the one that holds
    `cache`. The result lies in `cache` under a name made of the content and the tokenizer, so that another
    start only maps it, and an edited file is tokenised again. Raises DataUnavailable for a source that is
    missing, empty, or not readable as text, and where more than `corrupt_share` of its records are corrupt.
    """
    files = text_files(name, path, cache.parent)
    end = end_of_text(name, tokenizer)

    def pieces(tally: Tally) -> Iterator[Tokens]:
        for file in files:
            for record in records(name, file, tally):
                if record.text.strip():
                    yield from encoded_pieces(record.text, tokenizer)
                    yield np.asarray([end], dtype=np.uint32)

    stem = cache / f"{name}-{fingerprint(name, files, tokenizer)[:16]}"
    return kept(name, path, stem, pieces, corrupt_share)


def kept(
    name: str,
    path: Path,
    stem: Path,
    pieces: Callable[[Tally], Iterator[Tokens]],
    corrupt_share: Fraction,
) -> Kept:
    """What `pieces` gives, one after the other, of the source at `path`; it is kept in files named `stem`.

    It is asked only where they are not there yet. Raises DataUnavailable as `open_source` does.
    """
    tokens, reading = Path(f"{stem}.tokens"), Path(f"{stem}.json")
    if not (tokens.exists() and reading.exists()):
        _keep(name, path, tokens, reading, pieces, corrupt_share)
    read = Reading.model_validate_json(reading.read_bytes())
    read.check(name, corrupt_share)
    return Kept(np.memmap(tokens, dtype=np.uint32, mode="r"), read)


def end_of_text(name: str, tokenizer: Tokenizer) -> int:
    """The token that ends a document. Raises DataUnavailable where the tokenizer has none."""
    end = tokenizer.eos_token_id
    if end is None:
        raise DataUnavailable(
            f"source {name!r}: the model's tokenizer names no end-of-text token, so documents cannot be told "
            "apart. Set eos_token in its tokenizer_config.json."
        )
    return end


def encoded_pieces(document: str, tokenizer: Tokenizer) -> Iterator[Tokens]:
    """The tokens of a document, a piece at a time."""
    for piece in _pieces(document):
        encoded = tokenizer([piece], add_special_tokens=False, return_attention_mask=False)
        yield np.asarray(encoded["input_ids"][0], dtype=np.uint32)


def no_text(name: str, path: Path) -> DataUnavailable:
    """What to raise where a source turns out to be empty."""
    return DataUnavailable(f"source {name!r}: {path} holds no text. Put text in it, or remove the source.")


def text_files(name: str, path: Path, own: Path) -> list[Path]:
    """The files of a source, none of them in the folder `own`. Raises DataUnavailable."""
    try:
        return _text_files(name, path, own)
    except OSError as error:
        raise unreadable(name, Path(error.filename or path), error) from error


def _text_files(name: str, path: Path, own: Path) -> list[Path]:
    """The same, but raises OSError for what cannot be seen."""
    mode = _mode(path)
    if mode is None:
        raise DataUnavailable(
            f"source {name!r}: {path} does not exist. Mend its uri, or mount the volume that holds it."
        )
    if stat.S_ISDIR(mode):
        files = sorted(file for file in _walk(path, own) if stat.S_ISREG(_mode(file) or 0))
        if not files:
            raise DataUnavailable(
                f"source {name!r}: the folder {path} holds no {_KINDS} file, hidden ones and those "
                f"in this run's own folder {own} left out. Put one there, or mend its uri."
            )
        return files
    if not path.name.endswith(SUFFIXES):
        raise DataUnavailable(
            f"source {name!r}: {path} ends in {path.suffix!r}, which is not read. Give a {_KINDS} file."
        )
    return [path]


def _walk(folder: Path, own: Path) -> Iterator[Path]:
    """Text files at any depth. Not by rglob, which passes over a folder that it may not list."""

    def fail(error: OSError) -> None:
        raise error

    own = own.resolve()
    for root, folders, names in os.walk(folder, onerror=fail):
        here = Path(root)
        if here.resolve() == own:
            folders.clear()
            continue
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        yield from (here / inner for inner in names if not inner.startswith(".") and inner.endswith(SUFFIXES))


def _mode(path: Path) -> int | None:
    """What kind of file is there, None where there is none; OSError where that cannot be seen."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _pieces(document: str) -> Iterator[str]:
    begin = 0
    while len(document) - begin > _LONGEST_PIECE:
        newline = document.rfind("\n", begin, begin + _LONGEST_PIECE)
        end = newline + 1 if newline >= begin else begin + _LONGEST_PIECE
        yield document[begin:end]
        begin = end
    yield document[begin:]


def fingerprint(name: str, files: Sequence[Path], tokenizer: Tokenizer) -> str:
    """Hex SHA-256 of all that the tokens depend on."""
    digest = hashlib.sha256(_CACHE_FORMAT.encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    digest.update(f"{type(tokenizer).__name__} {tokenizer.eos_token_id} {described}".encode())
    for file in files:
        try:
            with file.open("rb") as opened:
                digest.update(f"{file.name} {os.fstat(opened.fileno()).st_size} ".encode())
                while content := opened.read(_READ_AT_ONCE):
                    digest.update(content)
        except OSError as error:
            raise unreadable(name, file, error) from error
    return digest.hexdigest()


def _keep(
    name: str,
    path: Path,
    tokens: Path,
    reading: Path,
    pieces: Callable[[Tally], Iterator[Tokens]],
    corrupt_share: Fraction,
) -> None:
    """Writes the cache whole or not at all: a process that dies here must not leave half a corpus."""
    tally = Tally()
    coming = pieces(tally)
    first = next(coming, None)
    # A source without text leaves no folder behind.
    if first is None:
        tally.reading().check(name, corrupt_share)
        raise no_text(name, path)
    try:
        tokens.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as cleanup:

            def pending(final: Path) -> IO[bytes]:
                file = cleanup.enter_context(
                    tempfile.NamedTemporaryFile(dir=final.parent, prefix=f".{final.stem}-", delete=False)
                )
                cleanup.callback(Path(file.name).unlink, missing_ok=True)
                return file

            stream = pending(tokens)
            # As they come: all of them together may be more than memory holds.
            for piece in chain((first,), coming):
                stream.write(piece.tobytes())
            tally.reading().check(name, corrupt_share)
            told = pending(reading)
            told.write(tally.reading().model_dump_json().encode())
            # The tokens last: where they are, all is.
            for file, final in ((told, reading), (stream, tokens)):
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(final)
    except OSError as error:
        raise DataUnavailable(
            f"tokens cannot be kept in {tokens.parent} ({error.strerror or error}). "
            "Make that folder writable, or free some space."
        ) from error
