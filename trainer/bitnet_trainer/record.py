"""run.json: what a run was made of, and how good its model was before training."""

import math
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import ValidationError

from bitnet_crds.plan import Plan
from bitnet_crds.record import Report
from bitnet_crds.spec import BitNetRunSpec
from bitnet_trainer.data import Reading

_PACKAGES = ("bitnet-operator", "torch", "transformers", "tokenizers", "numpy", "pyarrow", "safetensors")


class Baseline(Report):
    """How good the model was before training: perplexity, or a classifier's accuracy."""

    count: int
    """Tokens or rows that it was measured on."""
    original: float | None
    """Not quantised; none where it is no finite number."""
    quantized: float | None
    """Fully quantised; none where it is no finite number, or the model is not to be quantised."""

    @classmethod
    def of(cls, count: int, original: float, quantized: float | None) -> "Baseline":
        """From figures that may not be finite, which JSON cannot hold."""
        return cls(
            count=count,
            original=original if math.isfinite(original) else None,
            quantized=quantized if quantized is not None and math.isfinite(quantized) else None,
        )


class RunRecord(Report):
    """What stands in run.json."""

    namespace: str
    name: str
    started: datetime
    spec: BitNetRunSpec
    plan: Plan
    ledger_hash: str
    data_fingerprint: str
    sources: dict[str, Reading] = {}
    """How the reading of each source went; none in files written before it was kept."""
    model: str
    """Where the model was really loaded from."""
    converted_layers: int
    versions: dict[str, str]
    revision: str | None = None
    """Commit of the source tree that trains, with `-dirty` where files of it are changed; none where what
    trains is an installed package."""
    baseline: Baseline

    def write(self, path: Path) -> None:
        """Writes it whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pending = path.with_name(f".{path.name}")
        pending.write_text(self.model_dump_json(by_alias=True, indent=2) + "\n")
        pending.replace(path)

    @classmethod
    def read(cls, path: Path) -> "RunRecord | None":
        """Reads it back; None where there is none, or none of this version."""
        try:
            return cls.model_validate_json(path.read_text())
        except (OSError, ValidationError):
            return None


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what training computes."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    return found


def revision(file: Path = Path(__file__)) -> str | None:
    """The commit of the git checkout that `file` belongs to; None where it is in none, or git is not here."""

    def git(*arguments: str) -> str:
        asked = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # A package installed into somebody's project lies in that checkout, and is no part of it.
        git("ls-files", "--error-unmatch", file.name)
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    except (OSError, subprocess.SubprocessError):
        return None
