"""scripts/setup.sh in a folder of its own: it mends a half-made .venv, and ends with all that it began."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "setup.sh"
LOCK = """nvidia-nothing==1 \\
    --hash=sha256:00
other==1 \\
    --hash=sha256:00
"""
PIP = """#!/bin/sh
case "$*" in
  *cuda.lock*) echo $$ >background; exec sleep 60 ;;
  *others.lock*) until [ -s background ]; do sleep 0.01; done; exit 1 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("scripts", "requirements", "temporary"):
        (tmp_path / name).mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "requirements" / "dev.lock").write_text(LOCK)
    return tmp_path


def set_up(checkout: Path) -> str:
    """What it says as it fails: nobody has the packages of LOCK."""
    environment = os.environ | {
        "PYTHON": sys.executable,
        "PIP_NO_INDEX": "1",
        "TMPDIR": str(checkout / "temporary"),
    }
    log = checkout / "log"
    # No pipe: its end would be waited for, which whoever goes on holds open.
    with log.open("w") as file:
        command = [checkout / "scripts" / "setup.sh"]
        ran = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False)
    said = log.read_text()
    assert ran.returncode == 1
    assert "the packages could not be installed" in said
    return said


def test_a_venv_without_pip_is_made_anew(checkout: Path) -> None:
    venv.create(checkout / ".venv", with_pip=False)
    left = checkout / ".venv" / "installed-before"
    left.touch()
    assert "No module named pip" not in set_up(checkout)
    subprocess.run([checkout / ".venv/bin/python", "-m", "pip", "--version"], check=True)
    assert not left.exists()


def test_a_venv_with_pip_stays(checkout: Path) -> None:
    venv.create(checkout / ".venv", with_pip=True)
    left = checkout / ".venv" / "installed-before"
    left.touch()
    set_up(checkout)
    assert left.exists()


def test_after_a_failure_nothing_goes_on(checkout: Path) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PIP)
    python.chmod(0o755)
    set_up(checkout)
    with pytest.raises(ProcessLookupError):
        os.kill(int((checkout / "background").read_text()), 0)
    assert list((checkout / "temporary").iterdir()) == []
