"""Configuration and command lines of the one node: containerd with its network plugins, kubelet, CoreDNS."""

from __future__ import annotations

import json
from pathlib import Path

from local_cluster.certificates import Credentials
from local_cluster.control_plane import Command
from local_cluster.errors import MissingRequirement
from local_cluster.images import PAUSE_IMAGE
from local_cluster.programs import COREDNS, KUBERNETES
from local_cluster.settings import Network, Settings
from local_cluster.shell import find_program

CNI_PLUGINS = ("bridge", "host-local", "loopback")
CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
DNS_READY_PORT = 8181
KUBELET_HEALTH_PORT = 10248


def cni_folder() -> Path:
    """Where the network plugins are installed.

    Raises:
        MissingRequirement: no folder has all of them.
    """
    for folder in CNI_FOLDERS:
        if all((folder / plugin).is_file() for plugin in CNI_PLUGINS):
            return folder
    raise MissingRequirement(f"no CNI plugins in {' or '.join(map(str, CNI_FOLDERS))}")


def containerd_socket(work: Path) -> Path:
    return work / "containerd" / "containerd.sock"


def containerd(work: Path, network: Network) -> Command:
    """Writes containerd's configuration; all its state stays in the work folder."""
    networks = work / "cni" / "networks"
    networks.mkdir(parents=True, exist_ok=True)
    (networks / "10-bridge.conflist").write_text(_cni_configuration(work, network))
    configuration = work / "containerd.toml"
    configuration.write_text(_containerd_configuration(work, networks))
    return [find_program("containerd"), "--config", configuration]


def _cni_configuration(work: Path, network: Network) -> str:
    # A range of its own for each cluster, minus the addresses the bridge itself holds.
    addresses = {
        "type": "host-local",
        "dataDir": str(work / "cni" / "addresses"),
        "ranges": [[{"subnet": str(network.pods)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": network.bridge, "isGateway": True, "ipam": addresses}
    plugins = [bridge, {"type": "loopback"}]
    return json.dumps({"cniVersion": "0.4.0", "name": network.bridge, "plugins": plugins}, indent=2)


def _containerd_configuration(work: Path, networks: Path) -> str:
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE runc may not lower that score and would fail.
    return f"""version = 2
root = "{work}/containerd/root"
state = "{work}/containerd/state"
[grpc]
  address = "{containerd_socket(work)}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_folder()}"
    conf_dir = "{networks}"
"""


def containerd_client(work: Path, *arguments: str | Path) -> Command:
    """A `ctr` command in the namespace that kubelet's containers and images live in."""
    return [find_program("ctr"), "--address", containerd_socket(work), "--namespace", "k8s.io", *arguments]


def kubelet(work: Path, settings: Settings, credentials: Credentials, kubeconfig: Path) -> Command:
    """Writes kubelet's configuration; it leaves the host's firewall alone and evicts nothing."""
    address = settings.network.node_address
    configuration = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "healthzBindAddress": address,
        "healthzPort": KUBELET_HEALTH_PORT,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(credentials.authority.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "makeIPTablesUtilChains": False,
        "containerRuntimeEndpoint": f"unix://{containerd_socket(work)}",
        "podLogsDir": str(work / "log" / "pods"),
        "staticPodPath": "",
        "volumePluginDir": str(work / "kubelet" / "volume-plugins"),
        "resolvConf": "/etc/resolv.conf",
        "clusterDomain": "cluster.local",
        "clusterDNS": [address],
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "maxPods": settings.max_pods,
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
    }
    path = work / "kubelet.json"
    path.write_text(json.dumps(configuration, indent=2))
    return [
        KUBERNETES.folder() / "kubelet",
        f"--config={path}",
        f"--kubeconfig={kubeconfig}",
        f"--root-dir={work / 'kubelet'}",
        f"--cert-dir={work / 'kubelet' / 'pki'}",
        f"--hostname-override={settings.node_name}",
        f"--node-ip={address}",
    ]


def coredns(work: Path, network: Network, kubeconfig: Path) -> Command:
    """Answers for names of the cluster alone; every other name is refused."""
    configuration = work / "Corefile"
    configuration.write_text(
        f""".:53 {{
  bind {network.node_address}
  errors
  ready {network.node_address}:{DNS_READY_PORT}
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {kubeconfig} local
  }}
}}
"""
    )
    return [COREDNS.folder() / "coredns", "-conf", configuration]
