"""Reads a BitNetRun out of a document, and turns what is wrong with it into problems a person can mend."""

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import ValidationError

from bitnet_crds.errors import InvalidRun, Problem, WrongValueError, WrongValuesError
from bitnet_crds.record import Record
from bitnet_crds.spec import API_VERSION, BitNetRun

_LONGEST = 400
"""Characters of what is wrong with one key."""
_NEAR = 0.5
"""The ratio of likeness, between 0 and 1, from which on one key may have been meant by another."""


def parse_run(document: Any) -> BitNetRun:
    """Reads a BitNetRun as parsed from YAML or as the API server returns it; `status` is left aside.

    Raises InvalidRun with every problem found: unknown keys come with the nearest known one.
    """
    if not isinstance(document, Mapping):
        raise InvalidRun([Problem("(document)", "not a BitNetRun", f"begin with apiVersion: {API_VERSION}")])
    try:
        # By alias alone: `micro_batch_size` is no key for the API server, so it is none here.
        return BitNetRun.model_validate(
            {key: value for key, value in document.items() if key != "status"}, by_alias=True, by_name=False
        )
    except ValidationError as error:
        found = (problem for detail in error.errors() for problem in _problems(detail))
        raise InvalidRun(replace(problem, what=_shortened(problem.what)) for problem in found) from None


def _shortened(what: str) -> str:
    """What is wrong without the middle of a value that is long: a condition has 1,024 characters, and the
    mend comes last."""
    return what if len(what) <= _LONGEST else f"{what[: _LONGEST // 2]}…{what[-_LONGEST // 2 + 1 :]}"


def _problems(detail: Mapping[str, Any]) -> Iterator[Problem]:
    location: tuple[int | str, ...] = detail["loc"]
    match detail.get("ctx", {}).get("error"):
        case WrongValueError() as error:
            yield _wrong_value(location, error)
        case WrongValuesError() as errors:
            yield from (_wrong_value(location, error) for error in errors.wrong)
        case _ if _is_echo(detail):
            return
        case _:
            yield _malformed(location, detail)


def _is_echo(detail: Mapping[str, Any]) -> bool:
    """Whether a list is called too short only because some of its items are wrong, which is said already."""
    return detail["type"] == "too_short" and bool(detail["ctx"]["actual_length"] < len(detail["input"]))


def _wrong_value(location: tuple[int | str, ...], error: WrongValueError) -> Problem:
    return Problem(_field((*location, error.field) if error.field else location), error.what, error.fix)


def _malformed(location: tuple[int | str, ...], detail: Mapping[str, Any]) -> Problem:
    """What pydantic found by itself, in words that name the mend."""
    field = _field(location)
    value = detail.get("input")
    found = "a block found" if isinstance(value, (Mapping, list)) else f"{value!r} found"
    match detail["type"]:
        case "extra_forbidden":
            return Problem(field, "no such key", _nearest_key(location))
        case "missing":
            return Problem(field, "missing", f"Add it; see `kubectl explain bnr.{_plain(location)}`")
        case "string_pattern_mismatch":
            fix = "Write lower-case letters, digits and hyphens, a letter first and no hyphen last"
            return Problem(field, f"{value!r} is not a name that Kubernetes takes", fix)
        case "too_short":
            return Problem(field, _items(detail), f"Write at least {detail['ctx']['min_length']}")
        case "too_long":
            return Problem(field, _items(detail), f"Write at most {detail['ctx']['max_length']}")
        case "dict_type":
            return Problem(field, found, "Write a block of keys")
        case "model_type" | "model_attributes_type":
            return Problem(field, found, f"Write a block of keys. {_keys_of(location)}")
        case "tuple_type":
            return Problem(field, found, "Write a list: each item begins with a dash")
        case _:
            return Problem(field, found, detail["msg"].replace("Input should", "It should"))


def _items(detail: Mapping[str, Any]) -> str:
    number = len(detail["input"])
    return f"{number} item{'' if number == 1 else 's'} found"


def _field(location: tuple[int | str, ...]) -> str:
    """A place in the document as a person writes it: `spec.phases[1].until`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _plain(location: tuple[int | str, ...]) -> str:
    return ".".join(part for part in location if isinstance(part, str))


def _nearest_key(location: tuple[int | str, ...]) -> str:
    """Names the known key nearest to an unknown one, all that are as near as that, and all keys known there
    where none is near."""
    matcher = difflib.SequenceMatcher(b=str(location[-1]))
    likeness = {}
    for key in _keys(location[:-1]):
        matcher.set_seq1(key)
        likeness[key] = matcher.ratio()
    most = max(likeness.values())
    if most < _NEAR:
        return _keys_of(location[:-1])
    return f"Did you mean {' or '.join(f'`{key}`' for key in likeness if likeness[key] == most)}?"


def _keys_of(location: tuple[int | str, ...]) -> str:
    return f"Known here: {', '.join(_keys(location))}"


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the block at `location` may have, as in YAML."""
    record: Any = BitNetRun
    for part in location:
        if isinstance(part, str):
            fields = {info.alias or name: info.annotation for name, info in record.model_fields.items()}
            record = _record_in(fields.get(part)) or record
    return sorted(info.alias or name for name, info in record.model_fields.items())


def _record_in(annotation: Any) -> Any:
    """The record inside an annotation such as `X | None` or `tuple[X, ...]`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, Annotated):
        return next((found for part in typing.get_args(annotation) if (found := _record_in(part))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Record) else None
