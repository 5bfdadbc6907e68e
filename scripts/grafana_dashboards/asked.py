"""The dashboards as the chart ships them, and their queries as Grafana asks them: variables put in."""

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "charts" / "bitnet-operator" / "files" / "dashboards"
NAMES = ("fleet", "run")

Dashboard = dict[str, Any]
"""Grafana's JSON, as it is."""


def dashboard(name: str) -> Dashboard:
    """One of NAMES."""
    return dict(json.loads((FOLDER / f"{name}.json").read_text()))


def panels(of: Dashboard) -> list[dict[str, Any]]:
    """Its panels less its rows, top to bottom."""
    return [panel for panel in of["panels"] if panel["type"] != "row"]


def marks(of: Dashboard) -> list[dict[str, Any]]:
    """What it marks over time on all of its panels."""
    return list(of["annotations"].get("list", []))


def filled_in(expr: str, namespace: str, run: str, window: str) -> str:
    """The query with values for all variables; `window` is what rates are over, four times the scrape
    interval or more. Raises ValueError where a variable is left."""
    values = {"$namespace": namespace, "$name": run, "$__rate_interval": window}
    for variable, value in values.items():
        expr = expr.replace(variable, value)
    if re.search(r"\$[A-Za-z_{]", expr):
        raise ValueError(f"a variable that has no value here: {expr}")
    return expr
