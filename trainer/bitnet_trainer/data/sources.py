"""Text on disk: .txt and .jsonl files become one stream of tokens, tokenised once and kept in a cache."""

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bitnet_trainer.errors import DataUnavailable

Tokens = npt.NDArray[np.uint32]

_SUFFIXES = (".txt", ".jsonl")
_CACHE_FORMAT = "1"
_LONGEST_PIECE = 1 << 20
"""Characters tokenised at once. A longer document is cut after a newline, to bound the memory it takes."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that data preparation needs."""

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a document."""

    def __call__(self, text: list[str], *, add_special_tokens: bool, return_attention_mask: bool) -> Any:
        """A mapping whose `input_ids` holds one list of token ids a text."""

    def get_vocab(self) -> dict[str, int]:
        """Token ids by token."""


def open_source(name: str, path: Path, tokenizer: Tokenizer, cache: Path) -> Tokens:
    """The tokens of one source, (N,), each document followed by the tokenizer's end-of-text token.

    `path` is a .txt file (one document), a .jsonl file (a document a line, in its `text` field) or a folder
    of them, read in the order of their names; hidden files and folders in it are left out, and the run's
    own folder, which is the one that holds `cache`. The result lies in `cache` under a name made of the
    content and the tokenizer, so that another start only maps it, and an edited file is tokenised again.
    Raises DataUnavailable for a source that is missing, empty, or not readable as text.
    """
    files = text_files(name, path, cache.parent)
    end = end_of_text(name, tokenizer)

    def tokens() -> Tokens:
        pieces: list[Tokens] = []
        for document in _documents(name, files):
            pieces.extend(encoded_pieces(document, tokenizer))
            pieces.append(np.asarray([end], dtype=np.uint32))
        if not pieces:
            raise no_text(name, path)
        return np.concatenate(pieces)

    return kept(cache / f"{name}-{fingerprint(name, files, tokenizer)[:16]}.npy", tokens)


def kept(path: Path, make: Callable[[], Tokens]) -> Tokens:
    """The array that lies at `path`, mapped; it is made and put there where there is none yet."""
    if not path.exists():
        _keep(make(), path)
    tokens: Tokens = np.load(path, mmap_mode="r")
    return tokens


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
        raise _unreadable(name, Path(error.filename or path), error) from error


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
                f"source {name!r}: the folder {path} holds no .txt or .jsonl file, hidden ones and those in "
                f"this run's own folder {own} left out. Put one there, or mend its uri."
            )
        return files
    if path.suffix not in _SUFFIXES:
        raise DataUnavailable(
            f"source {name!r}: {path} ends in {path.suffix!r}, which is not read. Give a .txt or .jsonl file."
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
        yield from (
            here / inner for inner in names if not inner.startswith(".") and inner.endswith(_SUFFIXES)
        )


def _mode(path: Path) -> int | None:
    """What kind of file is there, None where there is none; OSError where that cannot be seen."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _unreadable(name: str, path: Path, error: OSError) -> DataUnavailable:
    return DataUnavailable(
        f"source {name!r}: {path} cannot be read ({error.strerror or error}). "
        "Make it readable for the user that trains."
    )


def _read(name: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(name, file, error) from error


def _documents(name: str, files: Sequence[Path]) -> Iterator[str]:
    """Every document that is not blank."""
    for file in files:
        if file.suffix == ".txt":
            documents: Iterable[str] = (_decoded(name, file),)
        else:
            documents = (record.text for record in records(name, file))
        yield from (document for document in documents if document.strip())


class Record(NamedTuple):
    """One line of a .jsonl file."""

    line: int
    """Its number, from 1."""
    text: str
    fields: Mapping[str, Any]
    """All that it says, `text` included."""


def records(name: str, file: Path) -> Iterator[Record]:
    """The lines of a .jsonl file that are not blank. Raises DataUnavailable for one without text."""
    # JSON may hold U+2028 and its like, at which str.splitlines would cut a record in two.
    for number, line in enumerate(_decoded(name, file).split("\n"), start=1):
        if line.strip():
            yield _record(name, file, number, line)


def _decoded(name: str, file: Path) -> str:
    try:
        return _read(name, file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataUnavailable(
            f"source {name!r}: {file} is not UTF-8 (byte {error.start} is "
            f"0x{error.object[error.start]:02x}). "
            f"Convert it, as in `iconv -f latin1 -t utf-8 {file.name}`."
        ) from error


def _record(name: str, file: Path, number: int, line: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # of long numbers and deep nesting too
        raise DataUnavailable(
            f"source {name!r}: {file}, line {number} is not JSON that can be read "
            f"({getattr(error, 'msg', error)}). Write one object a line."
        ) from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataUnavailable(
            f"source {name!r}: {file}, line {number} has no string `text`. Write lines such as "
            '{"text": "Once upon a time"}.'
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataUnavailable(
            f"source {name!r}: {file}, line {number} has half a surrogate pair in its `text` (character "
            f"{error.start} is \\u{ord(text[error.start]):04x}). Write both halves, or leave it out."
        ) from error
    return Record(number, text, record)


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
        content = _read(name, file)
        digest.update(f"{file.name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def _keep(tokens: Tokens, path: Path) -> None:
    """Writes the cache whole or not at all: a process that dies here must not leave half a corpus."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as cleanup:
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", delete=False) as file:
                cleanup.callback(Path(file.name).unlink, missing_ok=True)
                np.save(file, tokens)
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).replace(path)
    except OSError as error:
        raise DataUnavailable(
            f"tokens cannot be kept in {path.parent} ({error.strerror or error}). "
            "Make that folder writable, or free some space."
        ) from error
