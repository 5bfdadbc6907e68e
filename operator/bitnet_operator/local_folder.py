"""Where a run of this machine keeps its files."""

import os
from pathlib import Path

from bitnet_crds import BitNetRunSpec
from bitnet_crds.protocol import run_address, run_folder

SCRATCH_VARIABLE = "BITNET_RUN_CACHE"
"""Environment variable that names the folder of runs whose checkpoints are in a bucket."""


def scratch() -> str:
    """That folder; ~/.cache/bitnet-operator/runs where the variable is not set."""
    return os.environ.get(SCRATCH_VARIABLE) or str(Path.home() / ".cache" / "bitnet-operator" / "runs")


def local_folder(spec: BitNetRunSpec, namespace: str, name: str) -> Path:
    """The folder of a run on this machine."""
    return run_folder(spec, namespace, name, scratch())


def kept_at(spec: BitNetRunSpec, namespace: str, name: str, step: int) -> str:
    """The address of what a run of this machine keeps with its checkpoint of `step`: the run's own, or its
    folder here, where there were no credentials for its bucket."""
    folder = local_folder(spec, namespace, name)
    here = folder / "checkpoints" / f"step-{step:08d}" / "COMMITTED"
    return f"file://{folder}" if here.exists() else run_address(spec, namespace, name)
