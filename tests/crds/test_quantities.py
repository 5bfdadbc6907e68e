"""Quantities and percentages: what is read, exactly, and what is refused."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds.quantities import (
    LARGEST_QUANTITY,
    PERCENTAGE_PATTERN,
    QUANTITY_PATTERN,
    format_percentage,
    parse_percentage,
    parse_quantity,
)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("10G", 10_000_000_000),
        ("1.5k", 1500),
        ("1Ki", 1024),
        ("1.5Gi", 1_610_612_736),
        ("1e10", 10_000_000_000),
        ("2.5E3", 2500),
        ("1E", 10**18),
        (10_000_000_000, 10_000_000_000),
        (1.0e10, 10_000_000_000),
        ("0", 0),
    ],
)
def test_a_quantity_is_a_whole_number(written: object, number: int) -> None:
    assert parse_quantity(written) == number


@pytest.mark.parametrize(
    "written", ["", "G", "10X", "10 G", " 10G", "-1", -1, "1.5", 1.5, "1.0005k", "0x10", "10m", "2E", "1e99"]
)
def test_what_is_no_quantity_is_refused_with_a_mend(written: object) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(written))) as caught:
        parse_quantity(written)
    assert "Write a whole number such as" in str(caught.value)


@pytest.mark.parametrize("written", [True, None, [], {}, float("nan"), float("inf")])
def test_other_types_are_no_quantity(written: object) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        parse_quantity(written)


@given(st.integers(0, LARGEST_QUANTITY))
def test_a_whole_number_is_read_as_itself(number: int) -> None:
    assert parse_quantity(number) == parse_quantity(str(number)) == number


@given(st.from_regex(QUANTITY_PATTERN, fullmatch=True))
def test_what_the_server_lets_pass_is_read_or_refused_with_words(written: str) -> None:
    try:
        number = parse_quantity(written.rstrip("\n"))
    except ValueError as error:
        words = str(error)
    else:
        words = ""
        assert 0 <= number <= LARGEST_QUANTITY
    assert words == "" or "Write a whole number" in words


percentages = st.decimals(0, 100, allow_nan=False, places=8).map(lambda number: f"{number.normalize():f}%")


@given(percentages)
def test_a_percentage_survives_a_round_trip_exactly(written: str) -> None:
    fraction = parse_percentage(written)
    assert parse_percentage(format_percentage(fraction)) == fraction
    assert re.fullmatch(PERCENTAGE_PATTERN, format_percentage(fraction))


def test_a_percentage_is_exact() -> None:
    assert parse_percentage("90%") == Fraction(9, 10)
    assert parse_percentage("33.3%") == Fraction(333, 1000)
    assert format_percentage(Fraction(1, 8)) == "12.5%"
    assert format_percentage(Fraction(1)) == "100%"
    assert format_percentage(Fraction(0)) == "0%"


@pytest.mark.parametrize(
    "written",
    ["90", 0.9, 90, "0.9", "101%", "100.0001%", "-1%", "%", " 90%", "9" * 20 + "%", None, Fraction(3, 2)],
)
def test_what_is_no_percentage_is_refused_with_a_mend(written: object) -> None:
    with pytest.raises(ValueError, match="Write one such as 90%"):
        parse_percentage(written)
