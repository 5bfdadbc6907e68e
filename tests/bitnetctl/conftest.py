"""bitnetctl as a person calls it, on runs small enough to be trained whole."""

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny import run_document, write_inputs

Document = dict[str, Any]
FAULTS = Path(__file__).parents[1] / "support/faults"


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a teacher and text."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@dataclass
class Bitnetctl:
    """Calls the command, and reads what it leaves."""

    folder: Path
    document: Document
    faults: dict[str, str] = field(default_factory=dict)
    """Those of faults/sitecustomize.py."""

    @property
    def file(self) -> Path:
        """The run as a person keeps it."""
        path = self.folder / "run.yaml"
        path.write_text(yaml.safe_dump(self.document))
        return path

    @property
    def run_folder(self) -> Path:
        """Where the run leaves everything."""
        uri: str = self.document["spec"]["checkpoint"]["uri"]
        return Path(uri.removeprefix("file://")) / "default" / self.document["metadata"]["name"]

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Starts it without waiting."""
        return subprocess.Popen(
            [Path(sys.prefix) / "bin/bitnetctl", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "NO_COLOR": "1"} | self._faults(),
        )

    def _faults(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(FAULTS), os.environ.get("PYTHONPATH")]))
        return {"PYTHONPATH": path, **self.faults} if self.faults else {}

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """Exit code and all output of `bitnetctl ARGUMENTS`."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def status(self) -> Document:
        """The run's status as it was written last; empty before that."""
        path = self.run_folder / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def wait_for_step(self, step: int, process: "subprocess.Popen[str]") -> None:
        """Returns when that many steps are in metrics.jsonl."""
        metrics = self.run_folder / "metrics.jsonl"
        deadline = time.monotonic() + 180
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < step:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"step {step} was not reached"
            time.sleep(0.02)


@pytest.fixture
def make_bitnetctl(inputs: Path, tmp_path: Path) -> Callable[..., Bitnetctl]:
    """`make_bitnetctl(steps=12)`: a run of so many steps, with a folder of its own."""

    def make(steps: int = 12) -> Bitnetctl:
        document = copy.deepcopy(run_document(inputs, steps=steps))
        document["spec"]["checkpoint"]["uri"] = f"file://{tmp_path}/runs"
        return Bitnetctl(tmp_path, document)

    return make


@pytest.fixture(scope="session")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Bitnetctl:
    """A run of 12 steps that has ended, for commands that only read it."""
    folder = tmp_path_factory.mktemp("finished")
    document = copy.deepcopy(run_document(inputs))
    document["spec"]["checkpoint"]["uri"] = f"file://{folder}/runs"
    bitnetctl = Bitnetctl(folder, document)
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 0, output
    return bitnetctl
