"""helm, promtool and prometheus: those that scripts/install-chart-tools.sh fetched, or those on PATH."""

import os
import shutil
from pathlib import Path


def program(name: str) -> str:
    """The path of a tool. Raises AssertionError where it is missing."""
    cache = Path(os.environ.get("BITNET_CACHE") or Path.home() / ".cache/bitnet-operator")
    installed = cache / "bin" / name
    found = str(installed) if installed.exists() else shutil.which(name)
    assert found, f"{name} is missing: run scripts/install-chart-tools.sh"
    return found
