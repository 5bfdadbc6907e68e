"""The programs a local cluster is made of, each a Go module of its own, and the key each is cached under."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path

from local_cluster.settings import cache_folder

MODULES = Path(__file__).parent / "modules"
KUBERNETES_VERSION = "v1.36.3"
GO_BUILD_FLAGS = ("-mod=readonly", "-buildvcs=false", "-trimpath", "-p=2")
BUILD_ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": ""}


def _version_flags() -> str:
    """Clients parse the API server's version, which stays v0.0.0 unless the linker sets it."""
    version = "k8s.io/component-base/version"
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    values = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor}
    return " ".join(f"-X {version}.{name}={value}" for name, value in values.items())


@dataclass(frozen=True)
class Manifest:
    """A file that ships inside a Go module and is wanted beside the programs built from it."""

    module: str
    path: str


@dataclass(frozen=True)
class Program:
    """What one module folder is built into."""

    name: str
    """Folder under `modules`."""
    binaries: tuple[tuple[str, str], ...]
    """(file name, Go package) of each executable."""
    linker_flags: str = "-s -w"
    manifests: tuple[Manifest, ...] = ()
    modules: Path = MODULES

    @property
    def module_folder(self) -> Path:
        return self.modules / self.name

    def key(self) -> str:
        """sha256 over all that decides the executables' content, but for the Go release.

        Any change to go.mod, go.sum, a source file of ours or a build flag gives another key.
        """
        digest = hashlib.sha256()
        words = [platform.machine(), *GO_BUILD_FLAGS, self.linker_flags]
        words += [f"{name}={value}" for name, value in sorted(BUILD_ENVIRONMENT.items())]
        words += [word for binary in self.binaries for word in binary]
        words += [word for manifest in self.manifests for word in (manifest.module, manifest.path)]
        digest.update("\0".join(words).encode())
        sources = [self.module_folder / "go.mod", self.module_folder / "go.sum"]
        sources += sorted(self.module_folder.rglob("*.go"))
        for source in sources:
            if source.exists():
                content = source.read_bytes()
                name = source.relative_to(self.module_folder)
                digest.update(f"\0{name}\0{len(content)}\0".encode())
                digest.update(content)
        return digest.hexdigest()

    def folder(self) -> Path:
        """Where the finished executables and manifests lie in the cache."""
        return cache_folder() / "cluster" / self.key()


KUBERNETES = Program(
    name="kubernetes",
    binaries=tuple(
        (name, f"k8s.io/kubernetes/cmd/{name}")
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
    ),
    linker_flags=f"-s -w {_version_flags()}",
)
ETCD = Program(name="etcd", binaries=(("etcd", "go.etcd.io/etcd/server/v3"),))
COREDNS = Program(name="coredns", binaries=(("coredns", "github.com/coredns/coredns"),))
PYTORCHJOB_CRD = Manifest(
    "github.com/kubeflow/training-operator", "manifests/base/crds/kubeflow.org_pytorchjobs.yaml"
)
TRAINING_OPERATOR = Program(
    name="training-operator",
    binaries=(("training-operator", "github.com/kubeflow/training-operator/cmd/training-operator.v1"),),
    manifests=(PYTORCHJOB_CRD,),
)
KUEUE_KINDS = (
    *(
        "admissionchecks",
        "clusterqueues",
        "cohorts",
        "localqueues",
        "multikueueclusters",
        "multikueueconfigs",
    ),
    *("provisioningrequestconfigs", "resourceflavors", "topologies", "workloadpriorityclasses", "workloads"),
)
KUEUE = Program(
    name="kueue",
    binaries=(("kueue", "sigs.k8s.io/kueue/cmd/kueue"),),
    manifests=tuple(
        Manifest("sigs.k8s.io/kueue", f"config/components/{path}")
        for path in (
            *(f"crd/bases/kueue.x-k8s.io_{kind}.yaml" for kind in KUEUE_KINDS),
            "webhook/manifests.yaml",
        )
    ),
)
KINDS = Program(
    name="kinds",
    binaries=(),
    manifests=tuple(
        Manifest(module, path)
        for module, paths in {
            "github.com/prometheus-operator/prometheus-operator": tuple(
                f"example/prometheus-operator-crd/monitoring.coreos.com_{kind}.yaml"
                for kind in ("podmonitors", "prometheusrules", "servicemonitors")
            ),
            "github.com/cert-manager/cert-manager": tuple(
                f"deploy/crds/cert-manager.io_{kind}.yaml" for kind in ("certificates", "issuers")
            ),
        }.items()
        for path in paths
    ),
)
"""Kinds of others that the chart makes objects of; nothing is built."""
FAKE_GCS_SERVER = Program(name="fake-gcs-server", binaries=(("fake-gcs-server", "./cmd/fake-gcs-server"),))
POD_PROGRAMS = Program(
    name="pod-programs", binaries=(("pause", "./cmd/pause"), ("wait-for-name", "./cmd/wait-for-name"))
)
PROGRAMS = (POD_PROGRAMS, ETCD, COREDNS, TRAINING_OPERATOR, KUBERNETES)
