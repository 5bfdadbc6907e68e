"""What may change while a run exists, as docs/runs.md tells it: no field more, and none less."""

import re
from pathlib import Path
from typing import Any

import yaml

from bitnet_crds import parse_run, plan
from bitnet_crds.changes import MUTABLE
from bitnet_crds.health import Health, NonFinite, Plateau

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "runs.md").read_text()
EXAMPLE = (ROOT / "examples" / "full-run.yaml").read_text()


def told_to_change() -> set[str]:
    """The fields in the first column of the page's table, but for its last row; `.keep` means that of the
    block named before it."""
    section = PAGE.partition("## What may change while it exists")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    fields, block = set(), ""
    for name in re.findall(r"`([\w.]+)`", " ".join(rows)):
        block = block if name.startswith(".") else name.rpartition(".")[0]
        fields.add(block + name if name.startswith(".") else name)
    return fields


def test_each_field_that_may_change_is_told_and_no_other() -> None:
    blocks = ((Health, ""), (NonFinite, "nonFinite."), (Plateau, "plateau."))
    health = {
        f"health.{block}{info.alias or name}"
        for model, block in blocks
        for name, info in model.model_fields.items()
    }
    whole = {"health.nonFinite", "health.plateau"}
    assert told_to_change() == (MUTABLE - {"health"}) | (health - whole)


def documented(block: str) -> Any:
    """The example of the page that begins with `block`."""
    found = re.search(rf"```yaml\n({block}:.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return yaml.safe_load(found[1])


def test_the_resize_that_is_told_goes_there_and_back_in_pods_of_its_own() -> None:
    document = yaml.safe_load(EXAMPLE)
    document["spec"] |= documented("workers")
    phases = plan(parse_run(document).spec).phases
    assert [(phase.shape.workers, phase.new_pods) for phase in phases] == [(1, False), (2, True), (1, True)]
    assert len({phase.shape.global_batch_size for phase in phases}) == 1


def test_the_plateau_that_is_told_is_one() -> None:
    document = yaml.safe_load(EXAMPLE)
    document["spec"] |= documented("health")
    health = parse_run(document).spec.health
    assert health.plateau is not None
    assert health.plateau.action == "Alert"
