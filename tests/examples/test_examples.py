"""Every example: planned as it is, and a scaled-down copy of it trained to its end, its loss falling."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bitnet_crds import parse_run
from bitnet_operator.cli import app
from bitnet_trainer.report import StepRecord, read_metrics
from in_process import train_in_process, tune_in_process
from scaled_down import EXAMPLES, FAMILIES, STEPS, TRAINED, document, order_of, scaled_down, write_scene

ALL = sorted([*EXAMPLES.glob("*.yaml"), *EXAMPLES.glob("gke/*.yaml")])


def test_the_scenarios_are_all_here() -> None:
    assert {path.stem for path in TRAINED} == {
        "bitdistill",
        "full-run",
        "haar",
        "low-rank-influence",
        "sequence-classification",
        "tcs-distillation",
    }


def test_families_cover_what_the_examples_start_from() -> None:
    origins = {document(path)["spec"]["model"].get("from") for path in TRAINED}
    assert origins - {None} <= FAMILIES.keys()


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_it_is_planned(path: Path) -> None:
    shown = CliRunner().invoke(app, ["plan", str(path)])
    assert shown.exit_code == 0, shown.output


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    write_scene(folder)
    return folder


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_scaled_down_it_trains_and_its_loss_falls(
    path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = document(path)
    order = order_of(scaled_down(original, scene))
    assert order.plan.total_steps == STEPS
    for phase, wanted in zip(order.spec.phases, parse_run(original).spec.phases, strict=True):
        assert phase.objectives.named().keys() == wanted.objectives.named().keys()

    tune_in_process(order, monkeypatch)
    result = train_in_process(order, monkeypatch)
    assert not result.stopped
    records = read_metrics(order.folder / "metrics.jsonl")
    assert len(records) == STEPS
    assert {name for record in records for name in record.objectives} == _weighed(order.spec.phases)
    base = "classification" if order.spec.classification else "crossEntropy"
    first, last = _raw(records[:4], base), _raw(records[-4:], base)
    print(f"\n{path.stem}: {base} {first:.3f} -> {last:.3f}; {result.message}")
    assert last < first


def _weighed(phases: Any) -> set[str]:
    """Objectives that have weight in some phase."""
    return {name for phase in phases for name, weight in phase.objectives.weights().items() if weight > 0}


def _raw(records: list[StepRecord], name: str) -> float:
    return sum(record.objectives[name].raw for record in records) / len(records)
