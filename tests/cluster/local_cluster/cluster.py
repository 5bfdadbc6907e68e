"""Starts and stops a one-node Kubernetes with Kubeflow's training operator, all as processes of this host."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from local_cluster import control_plane, node, training_operator
from local_cluster.build import build_all
from local_cluster.certificates import Credentials, create_credentials
from local_cluster.cleanup import add_bridge, clean_host
from local_cluster.errors import CommandFailed
from local_cluster.images import write_host_image, write_pause_image
from local_cluster.kubeconfigs import kubeconfig, write_kubeconfig
from local_cluster.kubectl import Kubectl
from local_cluster.lock import WorkFolderLock
from local_cluster.processes import Processes, answers, marked_processes
from local_cluster.programs import POD_PROGRAMS
from local_cluster.requirements import check_machine, check_ports, check_work_folder
from local_cluster.settings import Settings
from local_cluster.shell import run

Report = Callable[[str], None]


class LocalCluster:
    """A cluster whose state, logs and kubeconfig lie in one folder.

    Args:
        work: the folder; what an earlier cluster left in it is cleaned away at the start.
        settings: addresses and sizes.
        report: is called with a line for each stage.
    """

    def __init__(self, work: Path, settings: Settings | None = None, report: Report = print) -> None:
        self.work = work.resolve()
        self.settings = settings or Settings()
        self.report = report
        self.processes = Processes(self.work)
        self._lock = WorkFolderLock(self.work)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's; there once the cluster has started."""
        return self.work / "kubeconfig"

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(self.kubeconfig)

    def start(self) -> Path:
        """Builds what is not built, starts everything, and returns the path of the kubeconfig.

        Raises:
            MissingRequirement: the machine lacks something; nothing was started.
            ComponentFailed: names the component and shows its log's tail; everything is stopped again.
        """
        check_machine()
        check_work_folder(self.work)
        build_all(self.report)
        self._lock.acquire()
        try:
            self._clean()
            check_ports(self.settings.network)
            self._start()
        # Anything at all, Ctrl-C too: processes that were started outlive it otherwise. It goes on upwards.
        except BaseException:
            self.stop()
            raise
        return self.kubeconfig

    def stop(self) -> None:
        """Kills all processes, pods included, and cleans the host; logs stay. Safe to call at any time."""
        self._clean()
        self._lock.release()

    def _clean(self) -> None:
        self.processes.kill()
        clean_host(self.work, self.settings.network)

    def is_running(self) -> bool:
        """Whether this folder's cluster, maybe another process's, answers as ready."""
        if self.work not in marked_processes().values() or not self.kubeconfig.exists():
            return False
        try:
            self.kubectl("get", "--raw", "/readyz")
        except CommandFailed:
            return False
        return True

    def _start(self) -> None:
        shutil.rmtree(self.work / "log", ignore_errors=True)
        (self.work / "log").mkdir(parents=True)
        network = self.settings.network
        pki = self.work / "pki"
        with self._stage("keys and network device"):
            credentials = create_credentials(pki, self.settings)
            admin = self._write_kubeconfig(self.kubeconfig, credentials, "admin")
            add_bridge(network)
        with self._stage("etcd, containerd and the API server"):
            self.processes.start("etcd", control_plane.etcd(self.work, network))
            api_server = self.processes.start(
                "kube-apiserver", control_plane.api_server(pki, network, credentials)
            )
            self._start_containerd()
            self.processes.wait_until(api_server, lambda: bool(self.kubectl("get", "--raw", "/readyz")))
        with self._stage("controllers, scheduler, kubelet and DNS"):
            self._start_clients(pki, credentials, admin)
        with self._stage("training operator"):
            self._start_training_operator(admin)

    def _start_containerd(self) -> None:
        containerd = self.processes.start("containerd", node.containerd(self.work, self.settings.network))
        self.processes.wait_until(containerd, lambda: bool(run(node.containerd_client(self.work, "version"))))
        pause, host = self.work / "pause.tar", self.work / "host.tar"
        write_pause_image(pause, POD_PROGRAMS.folder() / "pause")
        write_host_image(host, POD_PROGRAMS.folder() / "wait-for-name")
        for archive in (pause, host):
            run(node.containerd_client(self.work, "images", "import", archive))

    def _start_clients(self, pki: Path, credentials: Credentials, admin: Path) -> None:
        """The processes that need no more than the API server."""
        network, node_name = self.settings.network, self.settings.node_name

        def own_kubeconfig(user: str) -> Path:
            path = pki / f"{user.rpartition(':')[2]}.kubeconfig"
            return self._write_kubeconfig(path, credentials, user)

        controllers = self.processes.start(
            "kube-controller-manager",
            control_plane.controller_manager(
                network, credentials, own_kubeconfig("system:kube-controller-manager")
            ),
        )
        self.processes.start(
            "kube-scheduler", control_plane.scheduler(network, own_kubeconfig("system:kube-scheduler"))
        )
        kubelet = self.processes.start(
            "kubelet",
            node.kubelet(self.work, self.settings, credentials, own_kubeconfig(f"system:node:{node_name}")),
        )
        coredns = self.processes.start("coredns", node.coredns(self.work, network, admin))
        self.processes.wait_until(
            coredns, lambda: answers(network.node_address, node.DNS_READY_PORT, "/ready")
        )
        self.processes.wait_until(kubelet, self._node_is_ready)
        self.processes.wait_until(
            controllers, lambda: bool(self.kubectl("get", "serviceaccount", "default", "--output", "name"))
        )

    def _node_is_ready(self) -> bool:
        conditions = self.kubectl.get("node", self.settings.node_name)["status"]["conditions"]
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def _start_training_operator(self, admin: Path) -> None:
        network = self.settings.network
        training_operator.forget_certificates()
        training_operator.install(self.kubectl, network)
        operator = self.processes.start(
            "training-operator",
            training_operator.command(self.work, network, admin),
            env={"MY_POD_NAMESPACE": training_operator.NAMESPACE},
        )
        self.processes.wait_until(
            operator, lambda: training_operator.hand_over_certificates(self.kubectl), "given certificates"
        )
        self.processes.wait_until(
            operator, lambda: answers(network.node_address, training_operator.HEALTH_PORT, "/readyz")
        )

    def _write_kubeconfig(self, path: Path, credentials: Credentials, user: str) -> Path:
        authority = credentials.authority.certificate.read_bytes()
        content = kubeconfig(self.settings.network.api_url, authority, credentials.tokens[user])
        return write_kubeconfig(path, content)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.report(f"{name}: {time.monotonic() - start:.1f} s")
