"""Numbers, times and addresses as people read them in a terminal. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from itertools import pairwise

from bitnet_crds import Segment
from bitnet_crds.adjustments import Adjustments
from bitnet_crds.status import SegmentOutcome

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-~=+*#"


def count(number: int) -> str:
    """A whole number with thousands separators: 19,073."""
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """`1 worker`, `2,048 workers`, `2 batches`."""
    suffix = "" if number == 1 else "es" if noun.endswith(("ch", "ss")) else "s"
    return f"{count(number)} {noun}{suffix}"


def significant(number: float) -> str:
    """Three significant digits, without zeros that say nothing: 0.000333, 0.001, 1, 5.12."""
    return f"{number:.3g}"


def decimal_words(decimal: str) -> str:
    """A decimal from a status, for reading: `182331.4821` is 182,331 and `31.24571` is 31.25.

    One with an exponent stays as it is: its few digits are all that is known.
    """
    if "e" in decimal.lower():
        return decimal
    try:
        number = Decimal(decimal)
    except InvalidOperation:
        return decimal
    if not number.is_finite():
        return decimal
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:,.2f}"


def percent_words(decimal: str) -> str:
    """A share from a status, for reading: `0.91275` is 91.28%."""
    try:
        number = Decimal(decimal)
    except InvalidOperation:
        return decimal
    return f"{number * 100:.2f}%" if number.is_finite() else decimal


def mixture_words(weights: Mapping[str, float]) -> str:
    """Shares of the sources, from weights of any sum: `web 75%, code 25%`. One without weight is left out."""
    total = sum(weights.values())
    return ", ".join(f"{name} {100 * weight / total:.3g}%" for name, weight in weights.items() if weight)


def duration(seconds: float) -> str:
    """`8s`, `4m 05s`, `3h 20m`, `12d 4h`."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {rest:02}s" if minutes else f"{rest}s"


def seconds_between(begin: str, end: str) -> float:
    """Seconds from one RFC 3339 time, as a status holds it, to another."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def place(address: str) -> str:
    """An address for reading: a `file://` one is shown as the path that it is."""
    return address.removeprefix("file://")


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """The values as at most `width` bars between their lowest and highest; each is the mean of its share."""
    if not values:
        return ""
    bars = min(width, len(values))
    cuts = [index * len(values) // bars for index in range(bars + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    blocks = _ASCII_BLOCKS if ascii_only else _BLOCKS
    if high == low:
        return blocks[0] * bars
    # The ratio comes first: a factor out of a tiny difference would be infinite.
    return "".join(blocks[round((mean - low) / (high - low) * (len(blocks) - 1))] for mean in means)


def ending(segment: Segment) -> str:
    """How a segment ended, in a word: a failed one by its exit code's name, `TeacherUnavailable`; one that
    the operator ended by why, `SpecChanged`; one whose pods are asked to end as `to end: NoStep`."""
    if segment.outcome is SegmentOutcome.FAILED and segment.exit_reason:
        return segment.exit_reason
    if segment.ending is not None and segment.outcome is SegmentOutcome.ENDED:
        return segment.ending.reason
    if segment.ending is not None and segment.outcome is SegmentOutcome.RUNNING:
        return f"to end: {segment.ending.reason}"
    return segment.outcome.value


def befell(adjustments: Adjustments) -> Iterator[str]:
    """What befell a run and changed its ledger, a sentence each, oldest roll-back first."""
    for name, size in adjustments.micro_batches.items():
        yield f"{name}: micro batches of {plural(size, 'sequence')} were found to fit"
    for name, times in adjustments.halvings.items():
        yield f"{name}: memory ran out, and the micro batch was halved {plural(times, 'time')}"
    for rollback in adjustments.rollbacks:
        batches = plural(rollback.batches, "batch")
        yield (
            f"back to step {count(rollback.checkpoint_step)}: losses were not finite; {batches} from "
            f"{count(rollback.first_batch)} on passed over, learning rates lowered"
        )
    for name, step in adjustments.phase_ends.items():
        yield f"{name}: ended before step {count(step)}, for the loss had stopped falling"
    if adjustments.end_step is not None:
        yield f"training ended before step {count(adjustments.end_step)}, for the loss had stopped falling"
