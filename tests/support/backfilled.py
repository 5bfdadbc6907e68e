"""A real Prometheus that holds every series there is: half an hour of a run and of two replicas."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bitnet_crds.protocol import TeacherState, TrainerState
from bitnet_crds.series import OPERATOR, RUNS, TRAINER, Series
from bitnet_crds.status import RunPhase
from chart_tools import program
from prometheus import Prometheus, running

START, END, STEP = 1767225600, 1767225600 + 1800, 15
"""Seconds since 1970, and between two scrapes."""
NAMESPACE, RUN = "team", "qwen3"
WAITS = "gemma"
"""Another run, with nothing but these series."""
_OF_WAITS = {"bitnetrun_attempts": 0.0, "bitnetrun_gpus": 0.0}
GPUS, STEPS_DONE = 8, 120
Labels = dict[str, str]


def _one_of(
    label: str, values: type[RunPhase] | type[TrainerState] | type[TeacherState], now: str
) -> list[tuple[Labels, float]]:
    return [({label: str(value)}, float(value == now)) for value in values]


_SAID: dict[str, list[tuple[Labels, float]]] = {
    "bitnetrun_phase": _one_of("phase", RunPhase, RunPhase.RUNNING),
    "bitnet_trainer_state": _one_of("state", TrainerState, TrainerState.TRAINING),
    "bitnet_trainer_teacher": _one_of("teacher", TeacherState, TeacherState.READY),
    "bitnet_trainer_phase": [({"phase": "main"}, 1), ({"phase": "distill"}, 0)],
    "bitnetrun_training_phase": [({"phase": "main"}, 1)],
    "bitnetrun_condition": [
        ({"type": "Stalled", "status": "True"}, 1),
        ({"type": "Checkpointing", "status": "False"}, 1),
    ],
    "bitnetrun_gpus": [({}, GPUS)],
    "bitnetrun_segments": [({}, 3)],
    "bitnetrun_segment_start_timestamp_seconds": [({}, START + 60)],
    "bitnet_operator_last_seen_timestamp_seconds": [({}, END - 10)],
}
"""Values that mean something, where others may be anything."""


def _samples(each: Series, number: int) -> Iterator[tuple[str, Labels, float]]:
    """Name, labels and value of all that a series has at the scrape of this number, which some values are."""
    anything = {label: f"some-{label}" for label in each.labels if label not in ("namespace", "name")}
    if each.type == "histogram":
        for bound in ("0.1", "1", "+Inf"):
            yield f"{each.name}_bucket", {"le": bound}, float(number)
        return
    for labels, value in _SAID.get(each.name, [(anything, float(number))]):
        yield each.name, labels, value


def _scraped(number: int) -> Iterator[tuple[str, Labels, float]]:
    """All that is scraped at once: both replicas tell of the run, as when one takes over from the other."""
    run = {"namespace": NAMESPACE, "name": RUN}
    for each in TRAINER:
        for name, labels, value in _samples(each, number):
            yield name, labels | run | {"pod": "qwen3-0-master-0", "instance": "10.0.0.7:9400"}, value
    for replica in ("1", "2"):
        target = {"pod": f"operator-{replica}", "instance": f"10.0.0.{replica}:9090"}
        for each in RUNS:
            for name, labels, value in _samples(each, number):
                yield name, labels | run | target, value
        for name, value in _OF_WAITS.items():
            yield name, target | {"namespace": NAMESPACE, "name": WAITS}, value
        waiting = {"namespace": NAMESPACE, "name": WAITS, "phase": str(RunPhase.PENDING)}
        yield "bitnetrun_phase", waiting | target, 1.0
        for each in OPERATOR:
            for name, labels, value in _samples(each, number):
                led = float(replica == "1") if name == "bitnet_operator_leader" else value
                yield name, labels | target | {"namespace": "bitnet-system"}, led


def _backfill(folder: Path) -> None:
    """Writes it all as Prometheus' own blocks."""
    lines = []
    for number, moment in enumerate(range(START, END + STEP, STEP)):
        for name, labels, value in _scraped(number):
            written = ",".join(f'{label}="{held}"' for label, held in labels.items())
            lines.append(f"{name}{{{written}}} {value!r} {moment}")
    text = folder / "series.txt"
    # Samples of one series must stand together, in order.
    text.write_text("\n".join([*sorted(lines, key=lambda line: line.partition("}")[0]), "# EOF", ""]))
    command = [program("promtool"), "tsdb", "create-blocks-from", "openmetrics", text, folder / "data"]
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    """One that keeps all that in this folder."""
    _backfill(folder)
    with running(folder, {}, "--storage.tsdb.retention.time=100y") as found:
        yield found
