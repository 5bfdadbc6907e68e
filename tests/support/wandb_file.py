"""Reads back what wandb wrote offline: a log of protobuf records in LevelDB's framing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _FRAME, _FILE_HEADER = 32768, 7, 7
_FULL, _LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, as far as it is whole. See LevelDB's doc/log_format.md."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), _FILE_HEADER, b""
    assert data[:4] == b":W&B"
    while at + _FRAME <= len(data):
        if _BLOCK - at % _BLOCK < _FRAME:
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + _FRAME : at + _FRAME + length]
        at += _FRAME + length
        if kind in (_FULL, _LAST):
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def history(path: Path) -> dict[int, dict[str, Any]]:
    """What was logged, by step; a step that was logged twice is an error."""
    found: dict[int, dict[str, Any]] = {}
    for record in records(path):
        if record.WhichOneof("record_type") != "history":
            continue
        items = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
        }
        step = items["_step"]
        assert step not in found
        found[step] = items
    return found


def summary(path: Path) -> dict[str, Any]:
    """The run's summary at the end."""
    found: dict[str, Any] = {}
    for record in records(path):
        for item in record.summary.update:
            found["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return found
