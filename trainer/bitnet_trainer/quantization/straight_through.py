"""A linear of rounded values whose gradients go to the values themselves: the straight-through estimator.

Source: Bengio et al., arXiv 1308.3432.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet_trainer.precision import product


def straight_through_linear(
    x: Tensor, weight: Tensor | None, rounded_x: Tensor, rounded_weight: Tensor, bias: Tensor | None
) -> Tensor:
    """`rounded_x rounded_weight^T + bias`; x and weight get the gradients that the rounded ones would.

    Two products are all of the way back. Written as `x + (rounded - x).detach()` it has three passes over
    memory more for each factor, on the way there too.

    Args:
        x: (..., in), not read.
        weight: (out, in), not read; None where it is not trained.
        rounded_x: (..., in), in the dtype of the products.
        rounded_weight: (out, in), likewise.
        bias: (out), likewise.

    Returns:
        (..., out) in that dtype.
    """
    rows = (each.reshape(-1, each.shape[-1]) for each in (x, rounded_x))
    found: Tensor = _StraightThroughLinear.apply(*rows, weight, rounded_weight, bias)
    return found.view(*x.shape[:-1], rounded_weight.shape[0])


class _StraightThroughLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rounded_x: Tensor,
        weight: Tensor | None,
        rounded_weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(rounded_x, rounded_weight)
        ctx.of_x, ctx.of_weight = x.dtype, None if weight is None else weight.dtype
        return F.linear(rounded_x, rounded_weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rounded_x, rounded_weight = ctx.saved_tensors
        for_x, _, for_weight, _, for_bias = ctx.needs_input_grad
        to_x = (gradient @ rounded_weight).to(ctx.of_x) if for_x else None
        to_weight = product(gradient.T, rounded_x, ctx.of_weight) if for_weight else None
        return to_x, None, to_weight, None, gradient.sum(dim=0) if for_bias else None
