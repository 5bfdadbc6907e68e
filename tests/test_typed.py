"""What pages and examples have one type: programs are on the PATH, and the bucket is one's own."""

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
INSTALL = (CHECKOUT / "docs/install.md").read_text()
BUCKET = "my-project-bitnet"


@pytest.mark.parametrize("page", ["README.md", "docs/install.md"])
def test_bitnetctl_is_on_the_path_before_it_is_called(page: str) -> None:
    before, called, _ = (CHECKOUT / page).read_text().partition("bitnetctl plan")
    assert called
    assert ". .venv/bin/activate" in before
    assert "make setup" in before


def test_the_example_that_takes_a_training_operator_says_so() -> None:
    before, _, _ = INSTALL.partition("kubectl apply -f examples/quickstart-cluster.yaml")
    assert "Kubeflow" in before
    assert "backend: Job" in before


def test_an_example_that_names_a_bucket_is_applied_with_ones_own() -> None:
    applied = [line for line in INSTALL.splitlines() if "kubectl apply" in line and "examples/gke/" in line]
    assert len(applied) == 2
    for line in applied:
        (example,) = re.findall(r"examples/gke/[\w-]+\.yaml", line)
        assert BUCKET in (CHECKOUT / example).read_text()
        assert f'sed "s/{BUCKET}/$BUCKET/" {example} | ' in line
