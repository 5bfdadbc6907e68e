"""A pod template whose container runs this checkout's own Python, mounted from the host."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from local_cluster.images import HOST_IMAGE

SYSTEM_FOLDERS = tuple(map(Path, ("/usr", "/bin", "/lib", "/lib64", "/etc/ssl")))
DATA = "/data"


def host_pod_template(
    checkout: Path,
    venv: Path,
    data: Path,
    *,
    container: str = "pytorch",
    grace_seconds: int = 5,
    env: dict[str, str] | None = None,
) -> dict[str, Any]:
    """A pod template fragment (plain data): image, mounts and environment, but no command.

    `python` in the container is the virtual environment's; checkout and environment are read-only, at their
    own paths, so an editable install works. `data` of the host is /data, writable, shared by all pods.

    Args:
        checkout: root of the source tree.
        venv: the virtual environment, `sys.prefix` of a process that runs in it.
        data: a folder of the host; made when it is not there.
        container: the container's name; the training operator wants `pytorch`.
        grace_seconds: from SIGTERM to SIGKILL; pods that are slow to go make a test slow.
        env: further variables of the container.
    """
    read_only = outermost([*SYSTEM_FOLDERS, checkout, venv, base_prefix(venv)])
    variables = {
        "PATH": f"{venv}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        **(env or {}),
    }
    mounts = [(f"host-{number}", folder, True) for number, folder in enumerate(read_only)]
    return {
        "spec": {
            "terminationGracePeriodSeconds": grace_seconds,
            "containers": [
                {
                    "name": container,
                    "image": HOST_IMAGE,
                    "imagePullPolicy": "Never",
                    "env": [{"name": name, "value": value} for name, value in variables.items()],
                    "volumeMounts": [
                        *(
                            {"name": name, "mountPath": str(folder), "readOnly": read_only}
                            for name, folder, read_only in mounts
                        ),
                        {"name": "data", "mountPath": DATA},
                    ],
                }
            ],
            "volumes": [
                *({"name": name, "hostPath": {"path": str(folder)}} for name, folder, _ in mounts),
                {"name": "data", "hostPath": {"path": str(data), "type": "DirectoryOrCreate"}},
            ],
        }
    }


def base_prefix(venv: Path) -> Path:
    """Where the Python lies that the virtual environment was made from, e.g. a folder of pyenv's."""
    code = "import sys; print(sys.base_prefix)"
    said = subprocess.run([venv / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
    return Path(said.stdout.strip())


def outermost(folders: Iterable[Path]) -> list[Path]:
    """The folders that exist, without those that lie inside another of them."""
    existing = sorted({folder for folder in folders if folder.exists()})
    return [folder for folder in existing if not any(other in folder.parents for other in existing)]
