"""A machine that lacks something is told so in one line, before anything starts."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from local_cluster import Network, cleanup, processes
from local_cluster.__main__ import main
from local_cluster.errors import ComponentFailed, LocalClusterError, MissingRequirement
from local_cluster.lock import WorkFolderLock
from local_cluster.requirements import check_ports, check_work_folder
from local_cluster.shell import find_program


def test_missing_program_names_the_install_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path))
    with pytest.raises(MissingRequirement) as caught:
        find_program("no-such-program")
    assert str(caught.value) == (
        "no-such-program is not installed: run scripts/install-cluster-prerequisites.sh"
    )
    assert (Path(__file__).parents[2] / "scripts" / "install-cluster-prerequisites.sh").stat().st_mode & 0o100


def test_a_tool_of_the_cache_comes_before_the_one_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path))
    assert find_program("sh") != tmp_path / "bin" / "sh"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").touch()
    assert find_program("sh") == tmp_path / "bin" / "sh"


@pytest.mark.parametrize("action", ["up", "down"])
def test_command_line_without_root(
    action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main([action, "--work", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("local_cluster: not root: ")
    assert captured.err.count("\n") == 1


def test_taken_port_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(LocalClusterError, match=f"port {port} is taken"):
            check_ports(replace(Network(), webhook_port=port))


def test_too_long_a_work_folder_is_named() -> None:
    with pytest.raises(LocalClusterError, match="longer than 60 bytes"):
        check_work_folder(Path("/tmp") / ("x" * 60))


def test_failed_component_shows_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "etcd.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    said = str(ComponentFailed("etcd", "ended with 1", log, lines=2))
    assert said == f"etcd ended with 1; the end of {log}:\n  line 98\n  line 99"


def test_a_work_folder_has_one_holder(tmp_path: Path) -> None:
    first, second = WorkFolderLock(tmp_path), WorkFolderLock(tmp_path)
    first.acquire()
    first.acquire()
    with pytest.raises(LocalClusterError, match="another process runs a cluster in"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_another_cluster_s_network_device_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    monkeypatch.setattr(processes, "MARK", "BITNET_LOCAL_CLUSTER_UNDER_TEST")
    monkeypatch.setattr(cleanup, "remove_bridge", removed.append)
    for folder in ("CONTROL_GROUPS", "SHIM_SOCKETS", "LOG_LINKS", "CNI_RESULTS"):
        monkeypatch.setattr(cleanup, folder, tmp_path / "none")
    other = processes.Processes(tmp_path / "other")
    other.start("sleep", ["sleep", "600"])
    try:
        with pytest.raises(LocalClusterError, match=f"a local cluster runs in {tmp_path / 'other'}"):
            check_work_folder(Path("/tmp/mine"))
        cleanup.clean_host(tmp_path / "mine", Network())
        assert removed == []
    finally:
        other.kill()
    cleanup.clean_host(tmp_path / "mine", Network())
    assert removed == [Network().bridge]
