"""Programs are cached under a key of all that decides their content, whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from local_cluster import build as building
from local_cluster.errors import INSTALL_SCRIPT, LocalClusterError, MissingRequirement
from local_cluster.programs import FAKE_GCS_SERVER, KINDS, KUBERNETES, KUEUE, PROGRAMS, Program


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "modules" / "greeter"
    (folder / "cmd").mkdir(parents=True)
    (folder / "go.mod").write_text("module greeter\n\ngo 1.26.0\n")
    (folder / "go.sum").write_text("example.org/a v1.0.0 h1:aaaa=\n")
    (folder / "cmd" / "main.go").write_text("package main\n\nfunc main() {}\n")
    return Program(name="greeter", binaries=(("greeter", "./cmd"),), modules=tmp_path / "modules")


@pytest.mark.parametrize("file", ["go.mod", "go.sum", "cmd/main.go"])
def test_key_changes_with_each_file(program: Program, file: str) -> None:
    before = program.key()
    path = program.module_folder / file
    content = path.read_text()
    path.write_text(content + "\n")
    assert program.key() != before
    path.write_text(content)
    assert program.key() == before


def test_key_changes_with_flags_and_binaries(program: Program) -> None:
    others = [
        replace(program, linker_flags="-s"),
        replace(program, binaries=(("other", "./cmd"),)),
        replace(program, binaries=(("greeter", "./other"),)),
    ]
    assert len({each.key() for each in (program, *others)}) == 4


def test_key_does_not_depend_on_where_the_checkout_lies(program: Program, tmp_path: Path) -> None:
    moved = program.modules.rename(tmp_path / "elsewhere")
    assert replace(program, modules=moved).key() == replace(program, modules=moved).key()
    key = replace(program, modules=moved).key()
    moved.rename(program.modules)
    assert program.key() == key


def test_every_program_has_a_module() -> None:
    for program in (*PROGRAMS, FAKE_GCS_SERVER, KINDS, KUEUE):
        assert (program.module_folder / "go.mod").is_file(), program.name
    sums = (KUBERNETES.module_folder / "go.sum").read_text()
    assert "k8s.io/kubernetes v1.36.3 h1:" in sums


def test_failed_build_leaves_no_folder(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_halfway(_go: Path, _program: Program, _package: str, output: Path) -> None:
        output.write_text("half a program")
        raise LocalClusterError("no space left")

    monkeypatch.setattr(building, "find_go", lambda: Path("go"))
    monkeypatch.setattr(building, "_compile", fails_halfway)
    with pytest.raises(LocalClusterError, match="no space left"):
        building.build(program)
    assert not program.folder().exists()
    assert list(program.folder().parent.iterdir()) == []


def test_build_happens_once(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compiles(_go: Path, _program: Program, package: str, output: Path) -> None:
        calls.append(package)
        output.write_text("a program")

    monkeypatch.setattr(building, "find_go", lambda: Path("go"))
    monkeypatch.setattr(building, "_compile", compiles)
    said: list[str] = []
    building.build_all(said.append, [program])
    building.build_all(said.append, [program])
    assert calls == ["./cmd"]
    assert len(said) == 2
    assert (program.folder() / "greeter").read_text() == "a program"


def go_that_says(folder: Path, version: str) -> None:
    folder.mkdir()
    go = folder / "go"
    go.write_text(f"#!/bin/sh\necho {version}\n")
    go.chmod(0o755)


@pytest.mark.parametrize(
    ("version", "parsed"), [("go1.26.8", (1, 26)), ("go1.27rc1", (1, 27)), ("devel", (0, 0))]
)
def test_go_version(tmp_path: Path, version: str, parsed: tuple[int, int]) -> None:
    go_that_says(tmp_path / "bin", version)
    assert building.go_version(tmp_path / "bin" / "go") == parsed


def test_old_go_is_refused_by_a_line_that_names_the_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_that_says(tmp_path / "bin", "go1.19.8")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    with pytest.raises(MissingRequirement) as caught:
        building.find_go()
    assert str(caught.value) == f"no Go 1.26 or newer: run {INSTALL_SCRIPT}"
