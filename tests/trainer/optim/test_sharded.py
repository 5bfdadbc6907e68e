"""Optimisers on sharded parameters: the steps are those of a whole model, on one rank and on two."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

import sharded_steps
from bitnet_trainer.ranks import Ranks

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
"""Dynamo asks for it."""


@pytest.mark.parametrize("check", sharded_steps.CHECKS, ids=lambda check: check.__name__)
def test_on_one_rank(check, tmp_path):
    ranks = sharded_steps.joined(str(tmp_path / "store"), 0, 1)
    try:
        check(ranks)
    finally:
        dist.destroy_process_group()


def test_on_two_ranks(tmp_path):
    """The same."""
    ranks = [
        subprocess.Popen(
            [sys.executable, sharded_steps.__file__, str(tmp_path / "store"), str(rank), "2"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(said)


@pytest.mark.parametrize(("here", "share"), [("4", True), ("2", False)])
def test_ranks_know_whether_one_machine_has_all(here, share, monkeypatch):
    """Sharded, they gather codes only between machines."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert Ranks(0, 4, torch.device("cpu"), None).share_a_machine == share
