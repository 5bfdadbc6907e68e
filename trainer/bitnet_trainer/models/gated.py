"""The gated MLP of a decoder's layer, whose linears are BitLinears: at lambda 1 one function of codes."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from transformers.activations import GELUTanh, SiLUActivation

from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.gated_training import SILU, TANH_GELU, WIDEST, Activation, gated_mlp
from bitnet_trainer.quantization.int8_training import Int8Codes

_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class GatedMLP(nn.Module):
    """`down(act(gate(x)) * up(x))`, as transformers' Llama, Qwen and Gemma have it.

    Where its linears are products of int8 codes and nothing else it is `gated_mlp`: linears and activation
    are not called then, nor their hooks.
    """

    gate_proj: BitLinear
    up_proj: BitLinear
    down_proj: BitLinear
    act_fn: nn.Module

    def __init__(self, parts: Mapping[str, nn.Module], activation: Activation) -> None:
        """Of the four parts by their names, and what `act_fn` among them computes."""
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.activation = activation

    @classmethod
    def from_mlp(cls, mlp: nn.Module) -> "GatedMLP | None":
        """One that holds the very parts of `mlp`, or None where that computes something else."""
        parts = dict(mlp.named_children())
        if set(parts) != _PARTS:  # a norm in between, say
            return None
        activation = _activation(parts["act_fn"])
        return None if activation is None else cls(parts, activation).train(mlp.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., in)."""
        linears = self.gate_proj, self.up_proj, self.down_proj
        if self.down_proj.in_features <= WIDEST and all(each.is_int8_linear(x) for each in linears):
            weights = [each.weight for each in linears]
            kept = cast("list[Int8Codes | None]", [each.kept for each in linears])  # no others are int8's
            return gated_mlp(x, weights, self.activation, torch.bfloat16, kept)
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return out


def _activation(function: nn.Module) -> Activation | None:
    if isinstance(function, nn.SiLU | SiLUActivation):
        return SILU
    if isinstance(function, GELUTanh) or (isinstance(function, nn.GELU) and function.approximate == "tanh"):
        return TANH_GELU
    return None
