"""Checks that this machine has what a local cluster needs, before anything is started."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from local_cluster.errors import LocalClusterError, MissingRequirement
from local_cluster.node import cni_folder
from local_cluster.processes import other_clusters
from local_cluster.settings import Network
from local_cluster.shell import find_program

PROGRAMS = ("kubectl", "openssl", "containerd", "ctr", "runc", "ip", "umount", "nice")
LONGEST_WORK_PATH = 60  # kubelet makes Unix sockets below it, whose paths may have no more than 107 bytes


def check_machine() -> None:
    """Raises MissingRequirement, in one line, for the first thing that is missing."""
    if os.geteuid() != 0:
        mend = "a local cluster makes network devices and mounts: run it with sudo -E"
        raise MissingRequirement("not root", mend)
    for name in PROGRAMS:
        find_program(name)
    cni_folder()


def check_work_folder(work: Path) -> None:
    """Raises LocalClusterError where `work` is too long a path for sockets, or another cluster runs."""
    if len(os.fsencode(work)) > LONGEST_WORK_PATH:
        raise LocalClusterError(f"the work folder's path is longer than {LONGEST_WORK_PATH} bytes: {work}")
    for other in other_clusters(work):
        stop = f"python3 -m local_cluster down --work {other}"
        use = f"BITNET_TEST_KUBECONFIG={other}/kubeconfig"
        mend = f"stop it ({stop}) or test against it ({use})"
        raise LocalClusterError(f"a local cluster runs in {other}: {mend}")


def check_ports(network: Network) -> None:
    """Raises LocalClusterError where another program holds a port that the cluster takes on every address."""
    for port in (network.etcd_port, network.etcd_port + 1, network.webhook_port):
        if not _is_free(port):
            raise LocalClusterError(f"port {port} is taken: free it, or give Network another one")


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
