"""Makes the cluster's two images on this machine: the pause container's, and one that is nearly empty."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Sequence
from pathlib import Path

PAUSE_IMAGE = "docker.io/local/pause:1"
HOST_IMAGE = "docker.io/local/host:1"
"""Holds no more than /wait-for-name, user names and /tmp; the host's folders are mounted into it."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUP = "root:x:0:\nnogroup:x:65534:\n"


def write_pause_image(archive: Path, pause: Path) -> None:
    """The image of the container that holds a pod's namespaces."""
    _write_image(archive, PAUSE_IMAGE, _layer({"pause": pause.read_bytes()}), ["/pause"])


def write_host_image(archive: Path, wait_for_name: Path) -> None:
    """The image for containers that bring their programs along as mounts (see `host_pods`)."""
    files = {
        "wait-for-name": wait_for_name.read_bytes(),
        "etc/passwd": _PASSWD.encode(),
        "etc/group": _GROUP.encode(),
        "etc/nsswitch.conf": b"hosts: files dns\n",
    }
    folders = {"etc": 0o755, "root": 0o700, "tmp": 0o1777}
    _write_image(archive, HOST_IMAGE, _layer(files, folders), [])


def _layer(files: dict[str, bytes], folders: dict[str, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for name, mode in (folders or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            layer.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644 if name.startswith("etc/") else 0o755
            layer.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _write_image(archive: Path, name: str, layer: bytes, command: Sequence[str]) -> None:
    """A docker-archive: manifest.json names the configuration and the layer, each called by its sha256."""
    layer_digest = hashlib.sha256(layer).hexdigest()
    configuration = json.dumps(
        {
            "architecture": _ARCHITECTURES[platform.machine()],
            "os": "linux",
            "config": {"Cmd": list(command) or None},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        }
    ).encode()
    configuration_name = f"{hashlib.sha256(configuration).hexdigest()}.json"
    layer_name = f"{layer_digest}/layer.tar"
    manifest = [{"Config": configuration_name, "RepoTags": [name], "Layers": [layer_name]}]
    entries = {
        configuration_name: configuration,
        layer_name: layer,
        "manifest.json": json.dumps(manifest).encode(),
    }
    with tarfile.open(archive, "w") as tar:
        for entry_name, content in entries.items():
            entry = tarfile.TarInfo(entry_name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
