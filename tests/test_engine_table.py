"""docs/engine.md: every test that it names is there, every objective and export format is in it."""

import re
from pathlib import Path
from typing import get_args

from bitnet_crds.objectives import Objectives
from bitnet_crds.spec import ExportFormat

ENGINE = Path(__file__).resolve().parent.parent / "docs" / "engine.md"


def test_what_it_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)]+)\)", ENGINE.read_text())
    assert len(links) > 40
    assert [link for link in links if not (ENGINE.parent / link).exists()] == []


def test_every_objective_has_a_line() -> None:
    lines = ENGINE.read_text().splitlines()
    names = [info.alias for info in Objectives.model_fields.values()]
    assert names
    assert [name for name in names if not any(line.startswith(f"| `{name}` |") for line in lines)] == []


def test_every_export_format_has_a_line() -> None:
    first_cells = [line.split("|")[1] for line in ENGINE.read_text().splitlines() if line.startswith("| `")]
    assert [
        name for name in get_args(ExportFormat) if not any(f"`{name}`" in cell for cell in first_cells)
    ] == []
