"""Writes plain values as YAML that a person can read; the contract may not depend on a YAML library."""

import json
import re
import textwrap
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

_PLAIN = re.compile(r"\.?[A-Za-z_]([^:#]|:(?=\S)|(?<=\S)#)*")
"""Text that needs no quotes: it can be no number, key or comment."""
_NOT_TEXT = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", ".nan", ".inf"}
_WIDTH = 100


def to_yaml(value: Any) -> str:
    """Writes dicts, lists, strings, numbers, booleans and None, in the order they have.

    Long text becomes a folded block, so that descriptions and rules can be read and diffed.
    Raises TypeError for anything else.
    """
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, member in value.items():
            yield from _entry(f"{_scalar(str(key))}:", member)
    elif isinstance(value, list) and value:
        for member in value:
            if isinstance(member, (dict, list)) and member:
                first, *rest = _lines(member)
                yield f"- {first}"
                yield from (f"  {line}" for line in rest)
            else:
                yield from _entry("-", member)
    else:
        yield _scalar(value)


def _entry(head: str, value: Any) -> Iterator[str]:
    """`head` and its value: on one line where it is a scalar, indented below it where it is a block."""
    if isinstance(value, (dict, list)) and value:
        yield head
        yield from (f"  {line}" for line in _lines(value))
    elif isinstance(value, str) and len(value) > _WIDTH - 20 and _folds(value):
        yield f"{head} >-"
        lines = textwrap.wrap(value, _WIDTH, break_long_words=False, break_on_hyphens=False)
        yield from (f"  {line}" for line in lines)
    else:
        yield f"{head} {_scalar(value)}"


def _folds(text: str) -> bool:
    """Whether a folded block gives the text back: it joins lines by one space and knows no escapes."""
    return text.isprintable() and text == " ".join(text.split())


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        # `1e-05` is a number in YAML 1.2 and text in 1.1: digits alone mean the same to both.
        digits = f"{Decimal(repr(value)):f}"
        return digits if "." in digits else f"{digits}.0"
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.isprintable() and value == value.strip()
        if plain and value.lower() not in _NOT_TEXT:
            return value
        return "".join(map(_escaped, json.dumps(value, ensure_ascii=False)))
    if isinstance(value, (dict, list)):
        return "{}" if isinstance(value, dict) else "[]"
    raise TypeError(f"{value!r} is no plain value")


def _escaped(character: str) -> str:
    """JSON's text is YAML's, but for characters that YAML wants escaped."""
    if character.isprintable():
        return character
    return f"\\U{ord(character):08x}"
