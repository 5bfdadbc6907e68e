"""Reading a BitNetRun from a file, as a person keeps it beside their models and text."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from bitnet_crds import InvalidRun, Problem
from bitnet_crds.locations import parse_location
from bitnet_crds.protocol import run_folder
from bitnet_crds.spec import KIND, BitNetRunSpec


def read_document(path: Path) -> dict[str, Any]:
    """The YAML file's one BitNetRun, its relative addresses resolved.

    Other kinds may stand beside it, such as the claim that it trains from. `file://./x` and `file://../x` are
    relative to the file's own folder, so that a run and what it needs can be moved together. Raises
    InvalidRun where the file cannot be read or does not hold one run.
    """
    try:
        documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
    except OSError as error:
        raise InvalidRun([Problem(str(path), str(error.strerror), "Name a file that can be read")]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        words = " ".join(str(error).split())
        raise InvalidRun([Problem(str(path), f"not YAML: {words}", "Mend it there")]) from None
    runs = [document for document in documents if isinstance(document, dict) and document.get("kind") == KIND]
    # A lone document is taken for a run whatever it says, so that its mistakes are named one by one.
    runs = runs or [document for document in documents if isinstance(document, dict)][: len(documents) == 1]
    if len(runs) != 1:
        raise InvalidRun(
            [Problem(str(path), f"holds {len(runs)} runs", f"Write one document of kind {KIND}")]
        )
    resolved: dict[str, Any] = _resolve(runs[0], path.resolve().parent)
    return resolved


def _resolve(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _resolve(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, folder) for item in value]
    if isinstance(value, str) and value.startswith(("file://./", "file://../")):
        return f"file://{(folder / value.removeprefix('file://')).resolve()}"
    return value


def check_local_files(spec: BitNetRunSpec, namespace: str, name: str) -> None:
    """Raises InvalidRun where this machine lacks what the run names, before anything is made of it."""
    if problems := tuple(_local_problems(spec, run_folder(spec, namespace, name))):
        raise InvalidRun(problems)


def _local_problems(spec: BitNetRunSpec, folder: Path) -> Iterator[Problem]:
    addresses = {
        "spec.model.from": spec.model.from_,
        **({"spec.teacher.from": spec.teacher.from_} if spec.teacher else {}),
        **{f"spec.data.sources[{i}].uri": source.uri for i, source in enumerate(spec.data.sources)},
        "spec.checkpoint.uri": spec.checkpoint.uri,
    }
    for field, address in addresses.items():
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


def _file_problems(field: str, path: Path) -> Iterator[Problem]:
    if not path.exists():
        yield Problem(field, f"there is no {path}", "Name a file or folder that exists")
    elif path.is_file() and not path.stat().st_size:
        yield Problem(field, f"{path} is empty", "Name a file with something in it")
    elif path.is_dir() and not any(path.iterdir()):
        yield Problem(field, f"the folder {path} is empty", "Name a folder with something in it")


def _folder_problems(field: str, folder: Path) -> Iterator[Problem]:
    """Tries to write where the folder is or would be made. Permission bits alone say nothing of a read-only
    file system, nor to root."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            return
    except OSError as error:
        yield Problem(
            field,
            f"{folder} cannot be written: {error.strerror} ({existing})",
            "Name a folder that you can write",
        )
