"""What a Prometheus answered to all that a dashboard asks, kept as JSON, so that it can be drawn again."""

import json
import math
import urllib.parse
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grafana_dashboards.asked import dashboard, filled_in, marks, panels

POINTS = 240
"""In time, of each series."""


@dataclass(frozen=True)
class Answered:
    """One series of an answer. Of what is asked for one moment it has a single value, else one for each
    moment of the recording, None where there was none."""

    labels: dict[str, str]
    values: list[float | None]


@dataclass(frozen=True)
class Recording:
    """A dashboard's answers, by its queries as it has them; `now: ` is before those of one moment."""

    dashboard: str
    namespace: str
    run: str
    start: float
    """First moment, in seconds since 1970; the others follow each `step` seconds."""
    step: float
    answers: dict[str, list[Answered]]

    def answer(self, asking: dict[str, Any]) -> list[Answered]:
        """The series of a panel's query or a mark; none where it was not asked when this was recorded."""
        return self.answers.get(_key(asking), [])

    @property
    def minutes(self) -> list[float]:
        """Of each value, since the first."""
        return [number * self.step / 60 for number in range(POINTS + 1)]


def record(
    prometheus: str, name: str, namespace: str, run: str, start: float, end: float, window: str = "1m"
) -> Recording:
    """Asks a Prometheus at an address such as http://127.0.0.1:9090 all that the dashboard asks, of the time
    from `start` to `end`. Raises urllib.error.HTTPError where it refuses a query."""
    step = (end - start) / POINTS
    of = dashboard(name)
    answers = {}
    for asking in [target for panel in panels(of) for target in panel["targets"]] + marks(of):
        query = {"query": filled_in(asking["expr"], namespace, run, window)}
        if asking.get("instant"):
            result = _asked(prometheus, "query", query | {"time": str(end)})
            answers[_key(asking)] = [Answered(each["metric"], [_number(each["value"][1])]) for each in result]
        else:
            between = {"start": str(start), "end": str(end), "step": str(step)}
            result = _asked(prometheus, "query_range", query | between)
            answers[_key(asking)] = [
                Answered(each["metric"], _on_grid(each["values"], start, step)) for each in result
            ]
    return Recording(name, namespace, run, start, step, answers)


def keep(recording: Recording, path: Path) -> None:
    """Writes it, one series a line."""
    kept = asdict(recording)
    answers = kept.pop("answers")
    lines = [
        f"{json.dumps(expr)}: [{', '.join(json.dumps(each) for each in series)}]"
        for expr, series in answers.items()
    ]
    head = json.dumps(kept)[:-1]
    path.write_text(f'{head}, "answers": {{\n' + ",\n".join(lines) + "\n}}\n")


def kept(path: Path) -> Recording:
    """What was kept there."""
    held = json.loads(path.read_text())
    answers = {
        expr: [Answered(each["labels"], each["values"]) for each in series]
        for expr, series in held.pop("answers").items()
    }
    return Recording(**held, answers=answers)


def _key(asking: dict[str, Any]) -> str:
    return f"now: {asking['expr']}" if asking.get("instant") else str(asking["expr"])


def _asked(prometheus: str, what: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
    address = f"{prometheus}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(address, timeout=60) as answer:
        return list(json.load(answer)["data"]["result"])


def _on_grid(values: list[tuple[float, str]], start: float, step: float) -> list[float | None]:
    grid: list[float | None] = [None] * (POINTS + 1)
    for moment, value in values:
        grid[round((moment - start) / step)] = _number(value)
    return grid


def _number(text: str) -> float | None:
    """A value of Prometheus; None for what is not finite, which JSON does not have."""
    value = float(text)
    return value if math.isfinite(value) else None
