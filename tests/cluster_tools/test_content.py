"""What the cluster's files hold: kubeconfig, images, pod template, mount table, addresses."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tarfile
from ipaddress import IPv4Network
from pathlib import Path

import pytest

import local_cluster.processes
from local_cluster import Kubectl, Network, host_pod_template, service_account_kubeconfig
from local_cluster.cleanup import mount_points_below
from local_cluster.host_pods import base_prefix, outermost
from local_cluster.images import HOST_IMAGE, write_host_image
from local_cluster.kubeconfigs import kubeconfig, write_kubeconfig
from local_cluster.processes import Processes, kill_marked, marked_processes

CHECKOUT = Path(__file__).parents[2]


def test_kubeconfig_holds_all_it_needs(tmp_path: Path) -> None:
    content = kubeconfig("https://10.0.0.1:443", b"-----BEGIN", "secret", "team")
    path = write_kubeconfig(tmp_path / "deep" / "kubeconfig", content)
    assert path.stat().st_mode & 0o777 == 0o600
    parsed = json.loads(path.read_text())
    context = parsed["contexts"][0]
    assert parsed["current-context"] == context["name"]
    assert context["context"] == {"cluster": "local", "user": "user", "namespace": "team"}
    assert parsed["users"] == [{"name": "user", "user": {"token": "secret"}}]
    cluster = parsed["clusters"][0]["cluster"]
    assert cluster["server"] == "https://10.0.0.1:443"
    assert base64.b64decode(cluster["certificate-authority-data"]) == b"-----BEGIN"


def test_service_account_kubeconfig_keeps_the_server_and_takes_the_account_s_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = write_kubeconfig(tmp_path / "admin", kubeconfig("https://10.0.0.1:443", b"CA", "admin"))
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    # Stands in for a server, which alone can issue a token; it answers `config view` with the file itself.
    kubectl.write_text('#!/bin/sh\ncase "$*" in *"create token"*) echo "$5 in $7" ;; *) cat "$2" ;; esac\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path))

    path = service_account_kubeconfig(Kubectl(admin), "team", "operator", tmp_path / "operator")

    parsed = json.loads(path.read_text())
    assert parsed["users"][0]["user"] == {"token": "operator in team"}
    assert parsed["contexts"][0]["context"]["namespace"] == "team"
    assert parsed["clusters"] == json.loads(admin.read_text())["clusters"]


def test_host_image_archive(tmp_path: Path) -> None:
    program, archive = tmp_path / "program", tmp_path / "host.tar"
    program.write_bytes(b"a program")
    write_host_image(archive, program)
    with tarfile.open(archive) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))[0]  # type: ignore[arg-type]
        assert manifest["RepoTags"] == [HOST_IMAGE]
        configuration = json.load(tar.extractfile(manifest["Config"]))  # type: ignore[arg-type]
        assert configuration["rootfs"]["diff_ids"] == [f"sha256:{manifest['Layers'][0].partition('/')[0]}"]
        with tarfile.open(fileobj=tar.extractfile(manifest["Layers"][0])) as layer:
            assert layer.getmember("wait-for-name").mode == 0o755
            assert layer.getmember("tmp").mode == 0o1777


def test_host_pod_template_is_plain_data_with_matching_mounts(tmp_path: Path) -> None:
    template = host_pod_template(CHECKOUT, Path(sys.prefix), tmp_path, env={"HOME": "/data"})
    assert json.loads(json.dumps(template)) == template
    spec = template["spec"]
    (container,) = spec["containers"]
    assert container["name"] == "pytorch"
    volumes = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert volumes.keys() == {mount["name"] for mount in mounts.values()}
    assert volumes[mounts["/data"]["name"]] == str(tmp_path)
    assert [path for path, mount in mounts.items() if not mount.get("readOnly")] == ["/data"]
    for needed in (CHECKOUT, Path(sys.prefix), base_prefix(Path(sys.prefix))):
        assert any(needed.is_relative_to(path) for path in mounts), needed
    assert [each["value"] for each in container["env"] if each["name"] == "HOME"] == ["/data"]


def test_outermost_leaves_out_nested_and_missing_folders(tmp_path: Path) -> None:
    inner = tmp_path / "checkout" / ".venv"
    inner.mkdir(parents=True)
    assert outermost([inner, tmp_path / "none", inner.parent, inner]) == [inner.parent]


def test_mount_points_below_come_deepest_first() -> None:
    mounts = (
        "proc /proc proc rw 0 0\n"
        "tmpfs /srv/a/pods/x tmpfs rw 0 0\n"
        "tmpfs /srv/a/pods/x/with\\040space tmpfs rw 0 0\n"
        "tmpfs /srv/another tmpfs rw 0 0\n"
    )
    assert mount_points_below(Path("/srv/a"), mounts) == [
        Path("/srv/a/pods/x/with space"),
        Path("/srv/a/pods/x"),
    ]


def test_addresses_follow_from_the_ranges() -> None:
    network = Network(pods=IPv4Network("192.168.8.0/24"), services=IPv4Network("192.168.9.0/24"))
    assert network.node_address == "192.168.8.1"
    assert network.api_url == "https://192.168.9.1:443"


def test_marked_processes_are_found_and_killed_with_their_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_cluster.processes, "MARK", mark := "BITNET_LOCAL_CLUSTER_UNDER_TEST")
    processes, others = Processes(tmp_path / "a"), Processes(tmp_path / "b")
    # The child drops the mark, as a pod's processes do. Its parent outlives it: it is not to end by itself
    # when the child is killed first.
    script = f"env --unset={mark} sleep 600 & echo $!; wait; exec sleep 600"
    parent = processes.start("parent", ["sh", "-c", script])
    other = others.start("other", ["sleep", "600"])
    try:
        processes.wait_until(parent, lambda: parent.log.read_text().strip().isdigit())
        child = int(parent.log.read_text())
        processes.wait_until(parent, lambda: child not in marked_processes())
        assert marked_processes()[parent.process.pid] == tmp_path / "a"

        processes.kill()

        assert parent.process.returncode == -9
        stat = Path(f"/proc/{child}/stat")
        assert not stat.exists() or stat.read_text().rpartition(") ")[2].startswith("Z")
        assert other.process.poll() is None
    finally:
        kill_marked(tmp_path / "a")
        others.kill()


def test_scripts_are_shell_that_parses() -> None:
    for name in ("install-cluster-prerequisites.sh", "install-chart-tools.sh", "setup.sh", "lock.sh"):
        subprocess.run(["bash", "-n", CHECKOUT / "scripts" / name], check=True)
