"""The text of a source becomes one stream of tokens, tokenised once and kept in a cache."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bitnet_trainer.data.origins import SourceText, find
from bitnet_trainer.data.records import Reading, Tally
from bitnet_trainer.errors import DataUnavailable

Tokens = npt.NDArray[np.uint32]

_CACHE_FORMAT = "3"
_AT_ONCE = 1 << 20
"""Characters tokenised at once. A longer document is cut after a newline, to bound the memory it takes."""
_TOKENS_OF_A_CHARACTER = 5
"""At most: one for each of its bytes in UTF-8, and the end of its document."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that data preparation needs."""

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a document."""

    def __call__(self, text: list[str], *, add_special_tokens: bool, return_attention_mask: bool) -> Any:
        """A mapping whose `input_ids` holds one list of token ids a text."""

    def get_vocab(self) -> dict[str, int]:
        """Token ids by token."""


Heard = Callable[[int], object]
"""Is told of tokens as they are made, so many at a time."""


def nobody(_tokens: int) -> None:
    """Hears of them, and does nothing."""


class Kept(NamedTuple):
    """A source that has been tokenised."""

    tokens: Tokens
    """(N,), mapped from the cache."""
    reading: Reading
    """What was read for them."""


def open_source(
    text: SourceText,
    tokenizer: Tokenizer,
    cache: Path,
    corrupt_share: Fraction = Fraction(0),
    enough: int | None = None,
    heard: Heard = nobody,
) -> Kept:
    """The tokens of one source, (N,), each document followed by the tokenizer's end-of-text token.

    The result lies in `cache` under a name made of the text and the tokenizer, so that another start only
    maps it, and text that has changed is tokenised again. The folder that holds `cache` is the run's own, and
    no text. Of what is streamed no more documents are read than make `enough` tokens. Raises
    DataUnavailable for a source that is missing, empty, or not readable as text, and where more than
    `corrupt_share` of its records are corrupt.
    """
    documents = find(text, cache.parent)
    end = end_of_text(text.name, tokenizer)
    limit = enough if documents.streamed else None

    def pieces(tally: Tally) -> Iterator[Tokens]:
        had = 0

        def room() -> int:
            """Characters that can be tokenised before there may be enough."""
            return _AT_ONCE if limit is None else min(_AT_ONCE, (limit - had) // _TOKENS_OF_A_CHARACTER)

        texts = (record.text for record in documents.read(tally) if record.text.strip())
        for tokens, ends in encoded(texts, tokenizer, room):
            had += len(tokens) + ends
            yield tokens
            if ends:
                yield np.asarray([end], dtype=np.uint32)
                if limit is not None and had >= limit:
                    return

    identity = documents.identity if limit is None else f"{documents.identity} {limit} tokens"
    stem = cache / f"{text.name}-{fingerprint(identity, tokenizer)[:16]}"
    return kept(text, stem, pieces, corrupt_share, heard)


def kept(
    text: SourceText,
    stem: Path,
    pieces: Callable[[Tally], Iterator[Tokens]],
    corrupt_share: Fraction,
    heard: Heard,
) -> Kept:
    """What `pieces` gives, one after the other, of a source; it is kept in files named `stem`.

    It is asked only where they are not there yet, and `heard` is told of each. Raises DataUnavailable as
    `open_source` does.
    """
    tokens, reading = Path(f"{stem}.tokens"), Path(f"{stem}.json")
    if not (tokens.exists() and reading.exists()):
        _keep(text, tokens, reading, pieces, corrupt_share, heard)
    read = Reading.model_validate_json(reading.read_bytes())
    read.check(text.name, corrupt_share)
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


def encoded(
    documents: Iterable[str], tokenizer: Tokenizer, room: Callable[[], int] = lambda: _AT_ONCE
) -> Iterator[tuple[Tokens, bool]]:
    """The tokens of documents, a piece at a time, and whether a document ends with it.

    Pieces are tokenised together, so that a tokenizer may use all processors, until they have as many
    characters as `room` says; it is asked after each time. No document is read before its turn.
    """
    batch: list[tuple[str, bool]] = []
    size = 0

    def taken() -> Iterator[tuple[Tokens, bool]]:
        if not batch:
            return
        texts = [piece for piece, _ in batch]
        found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        for tokens, (_, ends) in zip(found, batch, strict=True):
            yield np.asarray(tokens, dtype=np.uint32), ends

    for document in documents:
        for piece, ends in _pieces(document):
            batch.append((piece, ends))
            size += len(piece)
            if size >= room():
                yield from taken()
                batch, size = [], 0
    yield from taken()


def _pieces(document: str) -> Iterator[tuple[str, bool]]:
    """Its pieces, and which is the last."""
    begin = 0
    while len(document) - begin > _AT_ONCE:
        newline = document.rfind("\n", begin, begin + _AT_ONCE)
        end = newline + 1 if newline >= begin else begin + _AT_ONCE
        yield document[begin:end], False
        begin = end
    yield document[begin:], True


def fingerprint(identity: str, tokenizer: Tokenizer) -> str:
    """Hex SHA-256 of all that the tokens of some documents depend on."""
    digest = hashlib.sha256(_CACHE_FORMAT.encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    digest.update(f"{type(tokenizer).__name__} {tokenizer.eos_token_id} {described} {identity}".encode())
    return digest.hexdigest()


def _keep(
    text: SourceText,
    tokens: Path,
    reading: Path,
    pieces: Callable[[Tally], Iterator[Tokens]],
    corrupt_share: Fraction,
    heard: Heard,
) -> None:
    """Writes the cache whole or not at all: a process that dies here must not leave half a corpus."""
    tally = Tally()
    coming = pieces(tally)
    first = next(coming, None)
    # A source without text leaves no folder behind.
    if first is None:
        tally.reading().check(text.name, corrupt_share)
        raise _no_text(text, tally.reading())
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
                heard(piece.size)
            read = tally.reading(text.revision)
            read.check(text.name, corrupt_share)
            told = pending(reading)
            told.write(read.model_dump_json().encode())
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


def _no_text(text: SourceText, reading: Reading) -> DataUnavailable:
    if reading.corrupt == reading.records > 0:
        why = f"holds no record that can be read. {reading.sentence(text.name)} Mend them"
    else:
        why = "holds no text. Put text in it"
    return DataUnavailable(f"source {text.name!r}: {text.origin} {why}, or remove the source.")
