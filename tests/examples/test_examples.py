"""Every example: planned as it is, and a scaled-down copy of it trained to its end, its loss falling."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from bitnet_crds import Order, parse_run, plan
from bitnet_crds.protocol import Progress
from bitnet_operator.cli import app
from bitnet_trainer.report import Reporter, StepRecord, read_metrics
from scaled_down import FAMILIES, STEPS, scaled_down, write_scene

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ALL = sorted(EXAMPLES.glob("*.yaml"))
TRAINED = [path for path in ALL if not path.stem.startswith("quickstart")]
"""`make quickstart` trains the one, `make test-cluster` the other."""


def document(path: Path) -> dict[str, Any]:
    (run,) = (part for part in yaml.safe_load_all(path.read_text()) if part["kind"] == "BitNetRun")
    return run


def test_the_scenarios_are_all_here() -> None:
    assert {path.stem for path in TRAINED} == {
        "bitdistill",
        "full-run",
        "haar",
        "low-rank-influence",
        "sequence-classification",
        "tcs-distillation",
    }


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
def test_scaled_down_it_trains_and_its_loss_falls(path: Path, scene: Path, train_order: Any) -> None:
    original = document(path)
    small = scaled_down(original, scene)
    run = parse_run(small)
    for phase, wanted in zip(run.spec.phases, parse_run(original).spec.phases, strict=True):
        assert phase.objectives.named().keys() == wanted.objectives.named().keys()
    order = Order(namespace="default", name=run.metadata.name, job="job", spec=run.spec, plan=plan(run.spec))
    assert order.plan.total_steps == STEPS
    result = train_order(order, Reporter(Progress(total_steps=STEPS, phase=order.plan.phases[0].name)))
    assert not result.stopped
    records = read_metrics(order.folder / "metrics.jsonl")
    assert len(records) == STEPS
    assert {name for record in records for name in record.objectives} == {
        name for phase in run.spec.phases for name, weight in phase.objectives.weights().items() if weight > 0
    }
    base = "classification" if run.spec.classification else "crossEntropy"
    first, last = raw(records[:4], base), raw(records[-4:], base)
    print(f"\n{path.stem}: {base} {first:.3f} -> {last:.3f}; {result.message}")
    assert last < first


def raw(records: list[StepRecord], name: str) -> float:
    return sum(record.objectives[name].raw for record in records) / len(records)


def test_families_cover_what_the_examples_start_from() -> None:
    origins = {document(path)["spec"]["model"].get("from") for path in TRAINED}
    assert origins - {None} <= FAMILIES.keys()
