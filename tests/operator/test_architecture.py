"""What import contracts cannot see: calls to a clock or to files in pure code, and who knows a child's kind.

The imports themselves are contracts in pyproject.toml, checked by `make lint`.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPERATOR = ROOT / "operator" / "bitnet_operator"
CRDS = ROOT / "crds" / "bitnet_crds"
CLOCKS = {"now", "utcnow", "today"}
FILES = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "print", "input"}
PURE_MODULES = (
    *("case", "closing", "conditions", "decide", "decision", "desired", "election", "failing", "life"),
    *("moments", "observation", "segments", "training", "watch"),
)

PURE_MODULES = ("admission", "decide", "decision", "desired", "election", "observation", "moments")
PURE = [
    *(OPERATOR / f"{name}.py" for name in PURE_MODULES),
    *sorted((OPERATOR / "policies").glob("*.py")),
    # schema is the contract's generator: its main() writes the file.
    *sorted(path for path in CRDS.glob("*.py") if path.name != "schema.py"),
]


def calls(source: str) -> Iterator[str]:
    """The last name of whatever is called: `now` for `datetime.now(UTC)`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                yield node.func.attr
            elif isinstance(node.func, ast.Name):
                yield node.func.id


def literals(source: str) -> Iterator[str]:
    """String constants, less docstrings."""
    tree = ast.parse(source)
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value


@pytest.mark.parametrize("path", PURE, ids=lambda path: str(path.relative_to(ROOT)))
def test_pure_code_asks_no_clock_and_touches_no_file(path: Path) -> None:
    assert not set(calls(path.read_text())) & (CLOCKS | FILES)


def test_the_check_sees_what_it_looks_for() -> None:
    source = "from datetime import datetime, UTC\nnow = datetime.now(UTC)\ntext = open('x')\n"
    assert set(calls(source)) == {"now", "open"}


def test_only_backends_know_a_childs_kind() -> None:
    knowing = {
        path.relative_to(OPERATOR).parts[0]
        for path in OPERATOR.rglob("*.py")
        for literal in literals(path.read_text())
        if "PyTorchJob" in literal or "kubeflow.org" in literal
    }
    assert knowing == {"backends"}


def test_neither_operator_nor_contract_brings_torch_in() -> None:
    """Not by way of a third package either: the operator's image has no torch."""
    modules = [
        ".".join(path.relative_to(home.parent).with_suffix("").parts)
        for home in (OPERATOR, CRDS)
        for path in home.rglob("*.py")
        if path.name != "__init__.py"
    ]
    code = (
        f"import sys, {', '.join(modules)}\nsys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
