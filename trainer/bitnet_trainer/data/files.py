"""The files of a source: which they are, and what they hold as one fingerprint."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from bitnet_trainer.data.records import SUFFIXES, TextFile, unreadable
from bitnet_trainer.errors import DataUnavailable

_READ_AT_ONCE = 1 << 20
"""Bytes."""
_KINDS = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def is_text(name: str) -> bool:
    """Whether a file of a folder is read, by its name relative to it."""
    return name.endswith(SUFFIXES) and not any(part.startswith(".") for part in name.split("/"))


def text_files(name: str, path: Path, own: Path, shown: str | None = None) -> list[Path]:
    """The files of a source, none of them in the folder `own`. Raises DataUnavailable.

    What there is a copy of is `shown` in errors.
    """
    try:
        return _text_files(name, path, own, shown or str(path))
    except OSError as error:
        raise unreadable(name, Path(error.filename or path), error) from error


def _text_files(name: str, path: Path, own: Path, shown: str) -> list[Path]:
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
                f"source {name!r}: the folder {shown} holds no {_KINDS} file, hidden ones and those "
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


def content_of(files: Iterable[TextFile]) -> str:
    """Hex SHA-256 of the files' names and bytes. Raises DataUnavailable."""
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.path.open("rb") as opened:
                digest.update(f"{file.path.name} {os.fstat(opened.fileno()).st_size} ".encode())
                while content := opened.read(_READ_AT_ONCE):
                    digest.update(content)
        except OSError as error:
            raise file.unreadable(error) from error
    return digest.hexdigest()
