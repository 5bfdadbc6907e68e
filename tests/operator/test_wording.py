"""Numbers, times and addresses in a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_operator.wording import decimal_words, duration, mixture_words, percent_words, plural, sparkline


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (245, "4m 05s"), (12_000, "3h 20m"), (1_051_200, "12d 4h")],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("decimal", "words"),
    [("31.24571", "31.25"), ("182331.48", "182,331"), ("inf", "inf"), ("?", "?"), ("2.3e+07", "2.3e+07")],
)
def test_decimal(decimal: str, words: str) -> None:
    assert decimal_words(decimal) == words


def test_plural() -> None:
    assert [plural(1, "step"), plural(2, "batch"), plural(2048, "process")] == [
        "1 step",
        "2 batches",
        "2,048 processes",
    ]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.integers(1, 80))
def test_a_sparkline_fits(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert set(line) <= set("▁▂▃▄▅▆▇█")


def test_a_sparkline_rises_and_falls() -> None:
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([8, 8, 1, 1], 2) == "█▁"
    assert sparkline([3, 3], 8) == "▁▁"
    assert sparkline([1, 8], 2, ascii_only=True) == "_#"
    assert sparkline([], 8) == ""


def test_percent() -> None:
    assert [percent_words(share) for share in ("0.91275", "1", "nan", "?")] == [
        "91.28%",
        "100.00%",
        "nan",
        "?",
    ]


def test_mixture() -> None:
    assert mixture_words({"web": 3, "code": 1, "books": 0}) == "web 75%, code 25%"
