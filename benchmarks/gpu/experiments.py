"""Ways to take a step that the trainer does not have: what they are worth is to be measured first."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn

from bitnet_trainer.precision import product
from bitnet_trainer.quantization import int8_training
from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.int8_training import int8_codes
from bitnet_trainer.quantization.kernels.int8_product import int8_product

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Linears that read the same tokens, in the order in which decoders call them."""

Rounding = Literal["Nearest", "Stochastic"]

_LEAST_GRADIENT = 1e-30
"""Of a token, the largest of whose gradients is less, all are 0."""


# --- one product for all that read the same tokens


def merge(model: nn.Module) -> None:
    """Has BitLinears with the same input multiply as one, at lambda 1; weights stay parameters of their own.

    Of those without bias, SubLN and low-rank correction.
    """
    for parent in model.modules():
        for names in SIBLINGS:
            linears = [getattr(parent, name, None) for name in names]
            if all(isinstance(each, BitLinear) for each in linears):
                _merge(linears)  # type: ignore[arg-type]


def _merge(linears: Sequence[BitLinear]) -> None:
    assert not any(each.bias is not None or each.rms_norm or each.low_rank for each in linears)
    ready: list[Tensor] = []

    def first(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        weights = [each.weight for each in linears]
        own, *others = _Merged.apply(rows, torch.bfloat16, *weights)
        ready.extend(others)
        return own.view(*x.shape[:-1], -1)

    def other(x: Tensor) -> Tensor:
        return ready.pop(0).view(*x.shape[:-1], -1)

    linears[0].forward = first  # type: ignore[method-assign]
    for each in linears[1:]:
        each.forward = other  # type: ignore[method-assign]


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        tokens, codes_per_unit = int8_training.token_codes(x)
        each, scales = zip(*(int8_codes(weight) for weight in weights), strict=True)
        codes = torch.cat(each)
        scale = torch.cat([own.expand(len(rows)) for rows, own in zip(each, scales, strict=True)])
        ctx.save_for_backward(tokens, codes_per_unit, codes, scale)
        ctx.dtypes, ctx.sizes = (x.dtype, weights[0].dtype), [len(rows) for rows in each]
        made: tuple[Tensor, ...] = int8_product(tokens, codes_per_unit, codes, scale, dtype).split(
            ctx.sizes, dim=1
        )
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        tokens, codes_per_unit, codes, scale = ctx.saved_tensors
        of_x, of_weight = ctx.dtypes
        gradient = torch.cat(gradients, dim=1)
        # Each scale is rounded to the products' type here, as one over all columns cannot be taken out.
        to_x = (gradient @ (codes * scale[:, None]).to(gradient.dtype)).to(of_x)
        to_weights = product(gradient.T, (tokens / codes_per_unit).to(gradient.dtype), of_weight)
        return to_x, None, *to_weights.split(ctx.sizes)


# --- the gradient of tokens by codes


@contextmanager
def int8_backward(rounding: Rounding) -> Iterator[None]:
    """Inside, the backward pass's product that makes the gradient of tokens is one of codes, too."""
    function = {"Nearest": _NearestBackward, "Stochastic": _StochasticBackward}[rounding]
    with patch.object(int8_training, "_Int8Linear", function):
        yield


def _backward(ctx: Any, gradient: Tensor, *, stochastic: bool) -> tuple[Tensor, Tensor, None, None]:
    tokens, codes_per_unit, codes, scale = ctx.saved_tensors
    of_x, of_weight = ctx.dtypes
    held, per_unit = _gradient_codes(gradient, stochastic)
    to_x = int8_product(held, per_unit, codes.T.contiguous(), scale, gradient.dtype).to(of_x)
    to_weight = product(gradient.T, (tokens / codes_per_unit).to(gradient.dtype), of_weight)
    return to_x, to_weight, None, None


def _gradient_codes(x: Tensor, stochastic: bool) -> tuple[Tensor, Tensor]:
    """As `quantize_activations`, of values however small; stochastic, they are rounded up or down by chance,
    so that the mean of many is the value itself."""
    full = x.float()
    per_unit = 127 / full.abs().amax(dim=-1, keepdim=True).clamp(min=_LEAST_GRADIENT)
    exact = full * per_unit
    codes = (exact + torch.rand_like(exact)).floor() if stochastic else exact.round()
    return codes.to(torch.int8).contiguous(), per_unit.contiguous()


class _NearestBackward(int8_training._Int8Linear):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return _backward(ctx, gradient, stochastic=False)


class _StochasticBackward(int8_training._Int8Linear):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return _backward(ctx, gradient, stochastic=True)


# --- reductions over wide rows in one pass

WIDE_OPTIONS = {"triton.multi_kernel": 1}
"""Inductor then also tries reductions that hold a row of up to 16,384 values, and takes what is faster."""


@contextmanager
def quantised_where_made() -> Iterator[None]:
    """Inside, the compiler quantises wide tokens too in the pass that makes them, such as a gate."""
    with patch.object(int8_training, "_FUSED_WIDTH", 1 << 20):
        yield
