"""A gated MLP by its codes: what `int8_linear` makes of its three linears, as one function.

So what is between the products is one pass over memory on the way there, and one on the way back, and is
rounded where it becomes codes alone. Gate and up read the same tokens, whose gradient is one product.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitnet_trainer.precision import at_least_float32, product
from bitnet_trainer.quantization.int8_training import (
    LEAST_GRADIENT,
    Int8Codes,
    dequantized,
    joint_product,
    kept_or_made,
    token_codes,
)
from bitnet_trainer.quantization.kernels.int8_product import int8_product

WIDEST = 16_384
"""Values a token of the widest gate: a multiprocessor's registers hold those of one token."""


class Activation(NamedTuple):
    """`g * sigmoid(linear * g + cubic * g^3)`."""

    linear: float
    cubic: float


SILU = Activation(1.0, 0.0)
TANH_GELU = Activation(math.sqrt(8 / math.pi), math.sqrt(8 / math.pi) * 0.044715)
"""`g/2 * (1 + tanh(sqrt(2/pi) * (g + 0.044715 g^3)))`, since `1 + tanh(z)` is `2 sigmoid(2z)`."""


class GatedGradients(NamedTuple):
    """What the backward pass makes of the gradient of `act(gate) * up`."""

    to_gate: Tensor
    """(N, I), in the dtype of `gate`."""
    to_up: Tensor
    """(N, I), likewise."""
    gated: Tensor
    """(N, I), likewise: `act(gate) * up` as the product with `down` had it, of codes."""
    codes: Tensor
    """(N, 2 I) int8: of each token's `to_gate` and `to_up`, each times its weight's scale."""
    codes_per_unit: Tensor
    """(N, 1) float32."""


def gated_mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    activation: Activation,
    dtype: torch.dtype,
    kept: Sequence[Int8Codes | None] = (None, None, None),
) -> Tensor:
    """`int8_linear` of `act(gate) * up` and `down`, where gate and up are `int8_linear` of x.

    Args:
        x: (..., in) floating point.
        weights: gate's (I, in), up's (I, in) and down's (out, I), floating point; they get gradients.
        activation: what the gate goes through.
        dtype: of the products' results.
        kept: the weights' `int8_codes`, where somebody has them.

    Returns:
        (..., out).
    """
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = _GatedMLP.apply(rows, *weights, activation, dtype, *kept)
    return out.view(*x.shape[:-1], weights[2].shape[0])


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate_weight: Tensor,
        up_weight: Tensor,
        down_weight: Tensor,
        activation: Activation,
        dtype: torch.dtype,
        *kept: Int8Codes | None,
    ) -> Tensor:
        tokens, codes_per_unit = token_codes(x)
        of_gate, of_up, of_down = kept_or_made((gate_weight, up_weight, down_weight), kept)
        gate = int8_product(tokens, codes_per_unit, *of_gate, dtype)
        up = int8_product(tokens, codes_per_unit, *of_up, dtype)
        gated, gated_per_unit = gated_codes(gate, up, activation)
        ctx.save_for_backward(tokens, codes_per_unit, gate, up, gated_per_unit, *of_gate, *of_up, *of_down)
        ctx.activation, ctx.of_x, ctx.of_weights = activation, x.dtype, gate_weight.dtype
        return int8_product(gated, gated_per_unit, *of_down, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tokens, codes_per_unit, gate, up, gated_per_unit, *of_weights = ctx.saved_tensors
        gate_codes, gate_scale, up_codes, up_scale, down_codes, down_scale = of_weights
        arriving = int8_product(
            *token_codes(gradient, LEAST_GRADIENT), down_codes.T.contiguous(), down_scale, gradient.dtype
        )
        made = gated_gradients(arriving, gate, up, gated_per_unit, (gate_scale, up_scale), ctx.activation)
        halves = gate_codes, up_codes
        to_x = joint_product(made.codes, made.codes_per_unit, halves, gradient.dtype).to(ctx.of_x)
        inputs = dequantized(tokens, codes_per_unit, gradient.dtype)
        to_gate = product(made.to_gate.T, inputs, ctx.of_weights)
        to_up = product(made.to_up.T, inputs, ctx.of_weights)
        to_down = product(gradient.T, made.gated, ctx.of_weights)
        return to_x, to_gate, to_up, to_down, *(None,) * 5


def gated_codes(gate: Tensor, up: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """`token_codes` of `act(gate) * up`, which are in float32 or better.

    Args:
        gate: (N, I) floating point, contiguous.
        up: (N, I), likewise.
        activation: what the gate goes through.

    Returns:
        codes (N, I) int8, contiguous, and codes a unit (N, 1) float32.
    """
    if gate.is_cuda:
        from bitnet_trainer.quantization.kernels import gated

        return gated.gated_codes(gate, up, *activation)
    full = at_least_float32(gate)
    return token_codes(full * _share(full, activation) * at_least_float32(up))


def gated_gradients(
    gradient: Tensor,
    gate: Tensor,
    up: Tensor,
    codes_per_unit: Tensor,
    scales: tuple[Tensor, Tensor],
    activation: Activation,
) -> GatedGradients:
    """The way back through `act(gate) * up`, as if nothing had been rounded.

    Args:
        gradient: (N, I) floating point, contiguous.
        gate: (N, I), likewise, as in `gated_codes`.
        up: (N, I), likewise.
        codes_per_unit: (N, 1) float32, which `gated_codes` gave.
        scales: () float32, of gate's weight and of up's.
        activation: as in `gated_codes`.
    """
    if gate.is_cuda:
        from bitnet_trainer.quantization.kernels import gated

        return GatedGradients(*gated.gated_gradients(gradient, gate, up, codes_per_unit, scales, *activation))
    dtype = gate.dtype
    gradient, gate, up = (at_least_float32(each) for each in (gradient, gate, up))
    share = _share(gate, activation)
    active = gate * share
    slope = activation.linear + 3 * activation.cubic * gate.square()
    to_gate = gradient * up * (share + active * (1 - share) * slope)
    to_up = gradient * active
    rounded = (active * up * codes_per_unit).round() / codes_per_unit
    both = torch.cat((to_gate * scales[0], to_up * scales[1]), dim=1)
    return GatedGradients(
        to_gate.to(dtype), to_up.to(dtype), rounded.to(dtype), *token_codes(both, LEAST_GRADIENT)
    )


def _share(gate: Tensor, activation: Activation) -> Tensor:
    """What of a gate its activation lets through."""
    return torch.sigmoid((activation.linear + activation.cubic * gate.square()) * gate)
