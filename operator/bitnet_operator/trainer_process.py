"""Parts of the trainer as processes of their own, for nothing here imports torch."""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence


def trainer_is_installed() -> bool:
    """Whether this machine can train, export and evaluate."""
    return all(importlib.util.find_spec(name) is not None for name in ("bitnet_trainer", "torch"))


def run_trainer(module: str, arguments: Sequence[str]) -> int:
    """`python -m bitnet_trainer.<module> <arguments>`, its output being ours; gives its exit code."""
    command = [sys.executable, "-m", f"bitnet_trainer.{module}", *arguments]
    return subprocess.run(command, check=False).returncode
