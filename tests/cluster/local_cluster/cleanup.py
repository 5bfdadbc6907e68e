"""Takes away what a cluster leaves on the host besides processes: mounts, the bridge, control groups."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from local_cluster.processes import other_clusters
from local_cluster.settings import Network
from local_cluster.shell import find_program, run

CONTROL_GROUPS = Path("/sys/fs/cgroup")
CNI_RESULTS = Path("/var/lib/cni/results")
SHIM_SOCKETS = Path("/run/containerd/s")
LOG_LINKS = Path("/var/log/containers")


def clean_host(work: Path, network: Network) -> None:
    """Undoes all that a cluster did to the host; its logs stay. Does nothing on a clean host."""
    unmount_below(work)
    if not other_clusters(work):  # the device would be the other's
        remove_bridge(network.bridge)
    remove_pod_control_groups()
    remove_stale_sockets()
    for link in LOG_LINKS.glob("*.log"):
        if work in link.readlink().parents:
            link.unlink(missing_ok=True)
    for result in CNI_RESULTS.glob(f"{network.bridge}-*"):
        result.unlink(missing_ok=True)
    for name in ("etcd", "containerd", "kubelet", "cni", "pki", "webhook-certificates"):
        shutil.rmtree(work / name, ignore_errors=True)


def unmount_below(folder: Path) -> None:
    """Unmounts everything mounted in `folder`, the deepest first."""
    points = mount_points_below(folder, Path("/proc/self/mounts").read_text())
    if points:
        run([find_program("umount"), "--lazy", *points])


def mount_points_below(folder: Path, mounts: str) -> list[Path]:
    """Mount points inside `folder` out of the text of /proc/mounts, the latest first."""
    points = [Path(_unescape(line.split(" ")[1])) for line in mounts.splitlines()]
    return [point for point in reversed(points) if folder in point.parents]


def _unescape(field: str) -> str:
    r"""/proc/mounts writes a space as \040, and so on."""
    return field.encode().decode("unicode_escape").encode("latin-1").decode()


def remove_stale_sockets() -> None:
    """Removes the socket files of killed shims: those that no process listens on."""
    used = Path("/proc/net/unix").read_text()
    for socket in SHIM_SOCKETS.glob("*"):
        if str(socket) not in used:
            socket.unlink(missing_ok=True)


def remove_bridge(bridge: str) -> None:
    """Removes the network device, and with it its addresses and routes."""
    if Path("/sys/class/net", bridge).exists():
        run([find_program("ip"), "link", "delete", bridge])


def add_bridge(network: Network) -> None:
    """Makes the network device of the pods, with the node's address and the API server's on it."""
    ip = find_program("ip")
    run([ip, "link", "add", network.bridge, "type", "bridge"])
    # The CNI plugin looks for the node's address among the device's: it has to be the first.
    run([ip, "address", "add", f"{network.node_address}/{network.pods.prefixlen}", "dev", network.bridge])
    run([ip, "address", "add", f"{network.api_address}/32", "dev", network.bridge])
    run([ip, "link", "set", network.bridge, "up"])


def other_kubelet_runs() -> bool:
    """Whether a kubelet runs on this machine; called when no process of ours is left."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(") ")
        except OSError:
            continue
        if name == "kubelet" and not rest.startswith("Z"):
            return True
    return False


def remove_pod_control_groups(timeout: float = 2) -> None:
    """Removes the empty control groups of dead pods, unless another kubelet of this machine owns the tree."""
    if other_kubelet_runs():
        return
    deadline = time.monotonic() + timeout
    for tree in [*CONTROL_GROUPS.glob("kubepods"), *CONTROL_GROUPS.glob("*/kubepods")]:
        groups = sorted((path for path in tree.rglob("*") if path.is_dir()), reverse=True)
        for group in [*groups, tree]:
            while group.is_dir():
                try:
                    group.rmdir()
                except OSError:
                    if time.monotonic() > deadline:
                        return
                    time.sleep(0.05)
