"""Reading a BitNetRun from a file, as a person keeps it beside their models and text."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from bitnet_crds import InvalidRun, Problem
from bitnet_crds.locations import parse_location
from bitnet_crds.spec import KIND, BitNetRunSpec
from bitnet_operator.local_folder import SCRATCH_VARIABLE, local_folder

_LONGEST_VALUE = 40
"""Characters of a wrong value that an error shows."""


class _Loader(yaml.SafeLoader):
    """YAML as a person writes it: no key twice, nothing within itself, every wrong value named by line."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """Refuses the second of two equal keys, which would win without a word. Merging comes later."""
        mapping: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in mapping.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if first := lines.get((key.tag, key.value)):
                raise _WrongYAMLError(f"line {line}: `{key.value}` is written twice, first in line {first}")
            lines[key.tag, key.value] = line
        return mapping

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ARG002
        """Always deep, so that what an anchor repeats within itself is found here."""
        try:
            value = super().construct_object(node, deep=True)
            if isinstance(value, int):
                # Python writes no integer of thousands of digits, so no error could show it.
                str(value)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            shown = str(node.value)[:_LONGEST_VALUE]
            raise _WrongYAMLError(f"line {node.start_mark.line + 1}: {shown!r}: {error}") from None
        return value


class _WrongYAMLError(yaml.YAMLError):
    """What YAML's own grammar lets pass, or its parser trips over."""


def read_document(path: Path) -> dict[str, Any]:
    """The YAML file's one BitNetRun, its relative addresses resolved.

    Other kinds may stand beside it, such as the claim that it trains from. `file://./x` and `file://../x` are
    relative to the file's own folder, so that a run and what it needs can be moved together. Raises
    InvalidRun where the file cannot be read or does not hold one run.
    """
    try:
        # The loader is a SafeLoader.
        documents = [document for document in yaml.load_all(path.read_text(), _Loader) if document]
        folder = path.resolve().parent
    except OSError as error:
        raise InvalidRun([Problem(str(path), str(error.strerror), "Name a file that can be read")]) from None
    except RecursionError:
        raise InvalidRun([Problem(str(path), "nested too deep", "Mend it there")]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        words = " ".join(str(error).split())
        raise InvalidRun([Problem(str(path), f"not YAML: {words}", "Mend it there")]) from None
    mappings = [document for document in documents if isinstance(document, dict)]
    runs = [document for document in mappings if document.get("kind") == KIND]
    if not runs and len(documents) == 1:
        # A lone document is taken for a run whatever it says, so that its mistakes are named one by one.
        runs = mappings
    if len(runs) != 1:
        raise InvalidRun(
            [Problem(str(path), f"holds {len(runs)} runs", f"Write one document of kind {KIND}")]
        )
    return {key: _resolve(item, folder, str(key)) for key, item in runs[0].items()}


def _resolve(value: Any, folder: Path, field: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _resolve(item, folder, f"{field}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, folder, f"{field}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, str) and value.startswith(("file://./", "file://../")):
        try:
            return f"file://{(folder / value.removeprefix('file://')).resolve()}"
        except (OSError, RuntimeError, ValueError) as error:
            what = f"{_shown(value)} leads nowhere: {_why(error)}"
            raise InvalidRun([Problem(field, what, "Name a path that there can be")]) from None
    return value


def _why(error: Exception) -> str:
    """In a few words; the system's own, without the number and the path that come with them."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error).split(" from ")[0]


def _shown(path: Path | str) -> str:
    """A path as it is, but for characters that no terminal shows."""
    return str(path) if str(path).isprintable() else repr(str(path))


def check_local_files(spec: BitNetRunSpec, namespace: str, name: str) -> None:
    """Raises InvalidRun where this machine lacks what the run names, before anything is made of it."""
    if problems := tuple(_local_problems(spec, local_folder(spec, namespace, name))):
        raise InvalidRun(problems)


def _local_problems(spec: BitNetRunSpec, folder: Path) -> Iterator[Problem]:
    addresses = {
        "spec.model.from": spec.model.from_,
        "spec.model.tokenizer": spec.model.tokenizer,
        "spec.teacher.from": spec.teacher.from_ if spec.teacher else None,
        **{f"spec.data.sources[{i}].uri": source.uri for i, source in enumerate(spec.data.sources)},
        "spec.checkpoint.uri": spec.checkpoint.uri,
    }
    for field, address in addresses.items():
        if address is None:
            continue
        if address.startswith("pvc://"):
            yield Problem(
                field,
                f"{address} is a claim of a cluster, and this is none",
                "Write file:///path to run here",
            )
        elif address.startswith("file://") and field != "spec.checkpoint.uri":
            yield from _file_problems(field, parse_location(address).path)
    if spec.checkpoint.uri.startswith("file://"):
        yield from _folder_problems("spec.checkpoint.uri", folder)
    elif spec.checkpoint.uri.startswith("gs://"):
        yield from _folder_problems(SCRATCH_VARIABLE, folder)


def _file_problems(field: str, path: Path) -> Iterator[Problem]:
    try:
        if not path.exists():
            yield Problem(field, f"there is no {_shown(path)}", "Name a file or folder that exists")
        elif path.is_file() and not path.stat().st_size:
            yield Problem(field, f"{path} is empty", "Name a file with something in it")
        elif path.is_dir() and not any(path.iterdir()):
            yield Problem(field, f"the folder {path} is empty", "Name a folder with something in it")
    except (OSError, ValueError) as error:
        what = f"{_shown(path)} cannot be read: {_why(error)}"
        yield Problem(field, what, "Name a file or folder that can be read")


def _folder_problems(field: str, folder: Path) -> Iterator[Problem]:
    """Tries to write where the folder is or would be made. Permission bits alone say nothing of a read-only
    file system, nor to root."""
    existing = folder
    try:
        existing = _nearest(folder)
        with tempfile.NamedTemporaryFile(dir=existing):
            return
    except (OSError, ValueError) as error:
        yield Problem(
            field,
            f"{_shown(folder)} cannot be written: {_why(error)} ({_shown(existing)})",
            "Name a folder that you can write",
        )


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that is there, be it a link that leads nowhere."""
    for path in (folder, *folder.parents):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
            return path
    raise FileNotFoundError(folder)
