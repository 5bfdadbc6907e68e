"""Command lines of etcd, the API server, the controller manager and the scheduler."""

from __future__ import annotations

from pathlib import Path

from local_cluster.certificates import Credentials
from local_cluster.programs import ETCD, KUBERNETES
from local_cluster.settings import Network

Command = list[str | Path]


def etcd(work: Path, network: Network) -> Command:
    """The store; its content is thrown away with the cluster, so nothing is forced to disk."""
    clients = f"http://127.0.0.1:{network.etcd_port}"
    peers = f"http://127.0.0.1:{network.etcd_port + 1}"
    return [
        ETCD.folder() / "etcd",
        f"--data-dir={work / 'etcd'}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={clients}",
        f"--advertise-client-urls={clients}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
    ]


def api_server(pki: Path, network: Network, credentials: Credentials) -> Command:
    """Real authentication and RBAC; calls webhooks at the Service's endpoints, as there is no kube-proxy."""
    return [
        KUBERNETES.folder() / "kube-apiserver",
        f"--etcd-servers=http://127.0.0.1:{network.etcd_port}",
        f"--bind-address={network.api_address}",
        "--secure-port=443",
        f"--advertise-address={network.api_address}",
        f"--service-cluster-ip-range={network.services}",
        f"--cert-dir={pki}",
        f"--tls-cert-file={credentials.api_server.certificate}",
        f"--tls-private-key-file={credentials.api_server.key}",
        f"--client-ca-file={credentials.authority.certificate}",
        f"--token-auth-file={credentials.tokens_file}",
        f"--service-account-key-file={credentials.service_account_key}",
        f"--service-account-signing-key-file={credentials.service_account_key}",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--enable-aggregator-routing=true",
        "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-client-certificate={credentials.kubelet_client.certificate}",
        f"--kubelet-client-key={credentials.kubelet_client.key}",
    ]


def controller_manager(network: Network, credentials: Credentials, kubeconfig: Path) -> Command:
    """Each controller acts as its own ServiceAccount, as in a real cluster."""
    return [
        KUBERNETES.folder() / "kube-controller-manager",
        *_as_client(network, kubeconfig),
        f"--service-account-private-key-file={credentials.service_account_key}",
        f"--root-ca-file={credentials.authority.certificate}",
        "--use-service-account-credentials=true",
    ]


def scheduler(network: Network, kubeconfig: Path) -> Command:
    return [KUBERNETES.folder() / "kube-scheduler", *_as_client(network, kubeconfig)]


def _as_client(network: Network, kubeconfig: Path) -> Command:
    return [
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        f"--bind-address={network.node_address}",
    ]
