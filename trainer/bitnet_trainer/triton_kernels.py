"""Whether kernels written in Triton can be used: it is optional, and each kernel has a twin in torch."""

import os
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

_LEAST_CAPABILITY = (8, 0)
"""CUDA's, from which on tensor cores multiply bfloat16."""
_ALIGNED = 16
"""Bytes; what such kernels read and write at a time."""


@cache
def has_kernels(device: torch.device) -> bool:
    """Whether a device runs Triton's kernels, products in bfloat16 included."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY
        and missing() is None
    )


def compiled_for(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The function as one graph, for a device that has kernels; as it is for others.

    Never as a CUDA graph, whatever TORCHINDUCTOR_CUDAGRAPHS says: what it gives is no other pass's to
    overwrite.
    """
    return _compiled(function) if has_kernels(device) else function


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    options: dict[str, Any] = {"triton.cudagraphs": False}
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False, options=options)
    return compiled


def missing() -> str | None:
    """What this machine lacks of what Triton, and torch's compiler by it, build a kernel's launcher with."""
    if find_spec("triton") is None:
        return "Triton (the package `triton`)"
    if not (os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")):
        return "a C compiler (gcc or clang, or one that CC names)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers (python3-dev)"
    return None


def picked(tensor: torch.Tensor, kernel: bool | None) -> bool:
    """Whether a kernel is to work on a tensor: as told, or where its device has them."""
    return has_kernels(tensor.device) and tensor.dtype != torch.float64 if kernel is None else kernel


def suited(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether kernels that are told addresses take the tensors: float32, in one piece, not empty, aligned."""
    return all(
        tensor.dtype == torch.float32
        and tensor.is_contiguous()
        and tensor.numel() > 0
        and tensor.data_ptr() % _ALIGNED == 0
        for tensor in tensors
    )
