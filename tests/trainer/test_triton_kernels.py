"""Where there are kernels, and what is said and done where something for them is missing."""

import importlib
import logging
import os
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from bitnet_trainer import setup, triton_kernels
from bitnet_trainer.ranks import Ranks
from small_specs import spec_of


@pytest.fixture
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine as a slim image is."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _name: None)


@pytest.mark.usefixtures("_bare")
def test_a_compiler_is_missed_and_may_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    assert "a C compiler" in (triton_kernels.missing() or "")
    monkeypatch.setenv("CC", "/opt/cc")
    assert triton_kernels.missing() is None
    (tmp_path / "Python.h").unlink()
    assert "python3-dev" in (triton_kernels.missing() or "")


class Student:
    """Says whether its layers were compiled."""

    compiled = False

    def compile_layers(self) -> None:
        self.compiled = True


CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("parallelism", "world", "replayed"),
    [("DDP", 1, True), ("DDP", 2, True), ("FSDP", 1, True), ("FSDP", 2, False)],
)
def test_layers_may_be_replayed_where_parameters_stay(
    parallelism: str, world: int, replayed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many micro batches make up a step."""
    spec = spec_of(workers={"microBatchSize": 4, "parallelism": parallelism})
    assert setup.replayable(spec, world) == replayed
    monkeypatch.setenv("TORCHINDUCTOR_CUDAGRAPHS", "0")
    assert not setup.replayable(spec, world)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.usefixtures("_bare")
def test_layers_are_compiled_where_there_are_kernels(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # so that it is put back
        del os.environ[name]
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    monkeypatch.setattr(setup, "has_kernels", lambda _device: there)
    student, inductor = Student(), importlib.import_module("torch._inductor.config")
    with caplog.at_level(logging.WARNING), inductor.patch(compile_threads=32):
        setup.compile_layers(student, tmp_path, Ranks(0, 1, CUDA, None))
        assert inductor.compile_threads == 4
    assert student.compiled == there
    assert ("a C compiler" in caplog.text) != there
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


def test_nothing_is_compiled_on_the_cpu(tmp_path: Path) -> None:
    student = Student()
    setup.compile_layers(student, tmp_path, Ranks(0, 1, torch.device("cpu"), None))
    assert not student.compiled


@pytest.mark.parametrize("there", [True, False])
def test_a_function_is_compiled_for_a_device_that_has_kernels(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_kernels, "has_kernels", lambda _device: there)
    found = triton_kernels.compiled_for(torch.neg, torch.device("cpu"))
    assert (found is torch.neg) != there


def test_what_a_compiled_function_gives_is_in_no_cuda_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """TORCHINDUCTOR_CUDAGRAPHS=1 makes graphs of what says nothing; later passes overwrite results."""
    asked: dict[str, object] = {}
    monkeypatch.setattr(triton_kernels, "has_kernels", lambda _device: True)
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.update(options) or function)
    triton_kernels.compiled_for(lambda x: x + 1, CUDA)
    assert asked["options"] == {"triton.cudagraphs": False}
