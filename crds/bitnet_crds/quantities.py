"""Numbers as Kubernetes people write them: quantities (`10G`, `512Mi`) and percentages (`90%`)."""

import re
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from bitnet_crds.errors import WrongValueError

_SUFFIXES = {
    "": 1,
    **{suffix: 1000**power for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{suffix: 1024**power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
}
QUANTITY_PATTERN = r"^([0-9]+|[0-9]+(\.[0-9]+)?([eE][0-9]{1,2}|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei))$"
LARGEST_QUANTITY = 10**18
"""1E: what is counted with it still fits the API server's 64 bits."""
_QUANTITY_FIX = "Write a whole number such as 5000000, 500M, 10G or 1Ki"
PERCENTAGE_PATTERN = r"^[0-9]+(\.[0-9]+)?%$"
_LONGEST = 16
"""Characters in a percentage: few enough for a double to hold it exactly, which CEL reckons with."""


def parse_quantity(value: Any) -> int:
    """A Kubernetes quantity as a whole number: `10G` is 10,000,000,000 and `1Ki` is 1,024.

    Raises ValueError for anything that is no quantity, is negative, is not whole, or is more than 1E.
    Source: Kubernetes' resource.Quantity format, less its fractional (`m`) suffixes.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise WrongValueError(f"{value!r} is not a quantity", _QUANTITY_FIX)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if re.fullmatch(QUANTITY_PATTERN, str(value)) is None:
        raise WrongValueError(f"{value!r} is not a quantity", _QUANTITY_FIX)
    digits, exponent, suffix = re.findall(r"([0-9.]+)(?:[eE]([0-9]+))?([a-zA-Z]*)$", str(value))[0]
    number = Fraction(digits) * 10 ** int(exponent or 0) * _SUFFIXES[suffix]
    if number.denominator != 1:
        raise WrongValueError(f"{value!r} is not a whole number", _QUANTITY_FIX)
    if number > LARGEST_QUANTITY:
        raise WrongValueError(f"{value!r} is more than 1E", _QUANTITY_FIX)
    return int(number)


def parse_percentage(value: Any) -> Fraction:
    """A percentage between 0% and 100% as an exact fraction: `90%` is 9/10.

    Exact, because a boundary is `floor(fraction * steps)` and a float can land one step early.
    Raises ValueError for anything else.
    """
    if isinstance(value, Fraction):
        fraction = value
    elif isinstance(value, str) and re.fullmatch(PERCENTAGE_PATTERN, value) and len(value) <= _LONGEST:
        fraction = Fraction(value.removesuffix("%")) / 100
    else:
        raise WrongValueError(f"{value!r} is not a percentage", "Write one such as 90%")
    if not 0 <= fraction <= 1:
        raise WrongValueError(f"{value!r} is not between 0% and 100%", "Write one such as 90%")
    return fraction


def format_percentage(fraction: Fraction) -> str:
    """The shortest decimal percentage: 9/10 is `90%`, 1/8 is `12.5%`. Exact for all that people can write."""
    percent = fraction * 100
    return f"{Decimal(percent.numerator) / Decimal(percent.denominator):f}%"


Quantity = Annotated[
    int,
    BeforeValidator(parse_quantity),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "pattern": QUANTITY_PATTERN,
            "x-mend": "not a quantity: write a whole number such as 5000000, 500M, 10G or 1Ki",
        }
    ),
]
"""A whole number, written as a Kubernetes quantity."""

Percentage = Annotated[
    Fraction,
    BeforeValidator(parse_percentage),
    PlainSerializer(format_percentage, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": PERCENTAGE_PATTERN,
            "maxLength": _LONGEST,
            "x-mend": "not a percentage: write one such as 90%",
        }
    ),
]
"""An exact fraction between 0 and 1, written as a percentage."""
