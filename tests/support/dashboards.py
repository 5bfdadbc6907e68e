"""What the dashboards' panels ask Prometheus of one run, and which of it only some runs have an answer to."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from grafana_dashboards.asked import NAMES, dashboard, filled_in, marks, panels

__all__ = ["NAMES", "NEEDS", "Needs", "PanelQuery", "dashboard", "filled_in", "marks", "panels", "queries"]


class Needs(StrEnum):
    """What a cluster's run must have for a query to be answered, where not every run has it."""

    GPU = "a GPU whose bfloat16 peak is known"
    MUONCLIP = "optimizer MuonClip"
    CLASSIFIER = "a sequence classifier that was evaluated"
    END = "a run that was evaluated at its end"
    TRAINING = "a run that trains at that moment"
    SICK = "a condition that is not well"
    CHECKPOINT_FAILED = "checkpoints that fail"
    OUT_OF_MEMORY = "memory that ran out"
    FAILURE = "an attempt that failed"
    RETRIES = "spec.retries over 0"


NEEDS = {
    ("fleet", "Speed by run"): Needs.TRAINING,
    ("fleet", "Runs: Time left"): Needs.TRAINING,
    ("fleet", "Runs: Speed"): Needs.TRAINING,
    ("fleet", "What is not well"): Needs.SICK,
    ("fleet", "Runs that are not well: {{type}}"): Needs.SICK,
    ("fleet", "Runs that are not well: Checkpointing fails"): Needs.CHECKPOINT_FAILED,
    ("fleet", "Attempts used"): Needs.RETRIES,
    ("fleet", "Runs: Last failure"): Needs.FAILURE,
    ("run", "Time left"): Needs.TRAINING,
    ("run", "Largest attention logit"): Needs.MUONCLIP,
    ("run", "Clipped heads"): Needs.MUONCLIP,
    ("run", "Model FLOPs utilisation"): Needs.GPU,
    ("run", "GPU memory of rank 0"): Needs.GPU,
    ("run", "Roll-backs and halvings: halvings in {{phase}}"): Needs.OUT_OF_MEMORY,
    ("run", "Perplexity"): Needs.END,
    ("run", "Accuracy"): Needs.CLASSIFIER,
}
"""By dashboard and panel, or panel and legend."""


@dataclass(frozen=True)
class PanelQuery:
    """One query of a panel, or of marks over time."""

    dashboard: str
    panel: str
    legend: str
    expr: str
    instant: bool
    """Whether it is asked for one moment, as figures and tables are."""
    needs: Needs | None
    """None where every run that has taken a step and written a checkpoint has an answer."""


def queries(name: str, namespace: str, run: str, window: str = "1m") -> Iterator[PanelQuery]:
    """All that the dashboard asks, with its variables as Grafana would put them in: `window` is what rates
    are over, four times the scrape interval or more."""
    of = dashboard(name)
    for panel in panels(of):
        for target in panel["targets"]:
            title, legend = panel["title"], target["legendFormat"]
            needs = NEEDS.get((name, f"{title}: {legend}"), NEEDS.get((name, title)))
            expr = filled_in(target["expr"], namespace, run, window)
            yield PanelQuery(name, title, legend, expr, target["instant"], needs)
    for mark in marks(of):
        expr = filled_in(mark["expr"], namespace, run, window)
        yield PanelQuery(name, f"marks: {mark['name']}", mark["titleFormat"], expr, False, None)
