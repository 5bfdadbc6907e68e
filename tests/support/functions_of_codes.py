"""What tests of several linears as one function of codes have in common."""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.int8_training import PackedCodes, int8_codes
from bitnet_trainer.quantization.low_rank import kaiming_correction
from bitnet_trainer.quantization.packing import pack_ternary

CHANGES: Mapping[str, Callable[[BitLinear], None]] = MappingProxyType(
    {
        "bias": lambda linear: setattr(linear, "bias", nn.Parameter(torch.zeros(linear.out_features))),
        "SubLN": lambda linear: setattr(linear, "rms_norm", nn.RMSNorm(linear.in_features)),
        "low rank": lambda linear: setattr(linear, "low_rank", kaiming_correction(linear.weight.detach(), 2)),
        "Haar": lambda linear: setattr(linear, "scheme", "Haar"),
        "packed": lambda linear: setattr(
            linear, "kept", PackedCodes(pack_ternary(int8_codes(linear.weight).codes), torch.ones(()))
        ),
        "elsewhere": lambda linear: setattr(linear, "whole", linear.weight.detach()),
    }
)
"""By which a linear does more, or other, than a product of int8 codes that are there."""


def drawn(seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Normal numbers; the same in every dtype but for rounding."""
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=chance, dtype=torch.float64).to(dtype) for shape in shapes]


def launches_in_one_graph(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    function: Callable[..., object],
    *arguments: object,
    gives: object,
) -> int:
    """How many kernels a function launches, traced as one graph; none of them is run.

    Args:
        monkeypatch: the test's.
        name: of the module of kernels.
        function: takes the arguments.
        arguments: tensors, and what else it takes.
        gives: what stands for what the graph puts out.
    """
    pytest.importorskip("triton")
    kernels, jit = import_module(name), import_module("triton.runtime.jit")
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda *_, **__: True)
    for each, kernel in vars(kernels).copy().items():
        if hasattr(kernel, "fn"):  # as it is where there is a GPU, and not interpreted
            monkeypatch.setattr(kernels, each, jit.JITFunction(kernel.fn))
    launched: list[str] = []

    def noted(graph: torch.fx.GraphModule, _inputs: object) -> Any:
        parts = [part for part in graph.modules() if isinstance(part, torch.fx.GraphModule)]
        launched.extend(str(node.target) for part in parts for node in part.graph.nodes)
        return lambda *_: gives

    torch.compile(function, backend=noted, fullgraph=True)(*arguments)
    torch._dynamo.reset()
    return launched.count("triton_kernel_wrapper_mutation")
