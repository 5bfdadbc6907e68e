"""A quantised linear by its codes: int8 forward and tokens' gradients, straight through the rounding.

What `BitLinear` computes at lambda 1, without the rounding of dequantised factors: products of codes are
whole numbers, added up exactly and scaled once. The backward pass keeps the tokens' codes, a byte a value.
There the gradient that arrives is quantised by token as tokens are, and multiplied with the weight's codes;
the gradient of the weight is a product in bfloat16, of gradients that nothing rounds. Source: SwitchBack,
arXiv 2304.13013.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitnet_trainer.precision import at_least_float32, product
from bitnet_trainer.quantization.codes import MINIMUM_SCALE, quantize_activations, quantize_weights
from bitnet_trainer.quantization.kernels.int8_product import int8_product
from bitnet_trainer.quantization.packing import unpack_ternary

_FUSED_WIDTH = 1024
"""Up to so many values a token, torch's compiler quantises in the pass that makes them, such as a norm. More
it would make twice: once for the largest of them, and again for the codes."""

LEAST_GRADIENT = 1e-30
"""`quantize_activations`' floor for gradients, which are as small as a loss over many tokens makes them."""


class Int8Codes(NamedTuple):
    """A ternary weight as products take it, without gradient."""

    codes: Tensor
    """(out, in) int8 in {-1, 0, 1}, contiguous."""
    scale: Tensor
    """(), at least float32: the weight is `scale * codes`."""


class PackedCodes(NamedTuple):
    """The same in a quarter of the memory."""

    packed: Tensor
    """(out, ceil(in / 4)) uint8, as `pack_codes` makes them."""
    scale: Tensor
    """() float32."""


def int8_codes(weight: Tensor) -> Int8Codes:
    """`quantize_weights` of (out, in), its codes in int8."""
    codes, scale = quantize_weights(weight)
    return Int8Codes(codes.to(torch.int8), scale)


def kept_or_made(weights: Sequence[Tensor], kept: Sequence[Int8Codes | None]) -> list[Int8Codes]:
    """`int8_codes` of each weight, or what somebody has of it."""
    return [
        int8_codes(weight) if codes is None else codes for weight, codes in zip(weights, kept, strict=True)
    ]


def joint_product(
    codes: Tensor, codes_per_unit: Tensor, weights: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    """What tokens get that several linears read, as one product.

    Args:
        codes: (N, sum of outs) int8, of the gradients side by side, each times its weight's scale: every
            weight has one of its own.
        codes_per_unit: (N, 1) float32.
        weights: (out, in) int8 each, their codes.
        dtype: of the result.

    Returns:
        (N, in).
    """
    together = torch.cat([each.T for each in weights], dim=1)
    return int8_product(codes, codes_per_unit, together, codes_per_unit.new_ones(()), dtype)


def int8_linear(
    x: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    kept: Int8Codes | PackedCodes | None = None,
    *,
    int8_backward: bool = True,
) -> Tensor:
    """`Q(x) Wq^T` with ternary Wq = scale * codes of the weight (absmean) and 8-bit Q(x).

    Args:
        x: (..., in) floating point; quantised by token in float32 or better.
        weight: (out, in) floating point; gets the gradient that Wq would.
        dtype: of the result, and of the factors in the backward pass.
        kept: the weight's `int8_codes`, where somebody has them, packed or not; the weight is not read then.
        int8_backward: whether the gradient of x is a product of codes, too, for which the one that arrives is
            rounded to 8 bits a value, to the nearest; else a product in `dtype`.

    Returns:
        (..., out).
    """
    rows = x.reshape(-1, x.shape[-1])
    product: Tensor = _Int8Linear.apply(rows, weight, dtype, kept, int8_backward)
    return product.view(*x.shape[:-1], weight.shape[0])


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        dtype: torch.dtype,
        kept: Int8Codes | PackedCodes | None,
        int8_backward: bool,
    ) -> Tensor:
        tokens, codes_per_unit = token_codes(x)
        held, scale = int8_codes(weight) if kept is None else kept
        ctx.packed_width = weight.shape[1] if isinstance(kept, PackedCodes) else None
        ctx.save_for_backward(tokens, codes_per_unit, held, scale)
        ctx.dtypes, ctx.int8_backward = (x.dtype, weight.dtype), int8_backward
        codes = _unpacked(held, ctx.packed_width)
        return int8_product(tokens, codes_per_unit, codes, scale, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        tokens, codes_per_unit, held, scale = ctx.saved_tensors
        codes = _unpacked(held, ctx.packed_width)
        of_x, of_weight = ctx.dtypes
        if ctx.int8_backward:
            rounded, per_unit = token_codes(gradient, LEAST_GRADIENT)
            to_x = int8_product(rounded, per_unit, codes.T.contiguous(), scale, gradient.dtype).to(of_x)
        else:
            # The scale goes over the product, not into the codes, which are exact in any dtype.
            to_x = (gradient @ codes.to(gradient.dtype)).to(of_x) * scale.to(of_x)
        to_weight = product(gradient.T, dequantized(tokens, codes_per_unit, gradient.dtype), of_weight)
        return to_x, to_weight, None, None, None


def _unpacked(codes: Tensor, width: int | None) -> Tensor:
    """int8 (out, width), of packed ones where there is a width."""
    return codes if width is None else unpack_ternary(codes, width)


def token_codes(x: Tensor, least: float = MINIMUM_SCALE) -> tuple[Tensor, Tensor]:
    """`quantize_activations` of (N, in): int8, contiguous, and float32."""
    if x.is_cuda and x.shape[1] > _FUSED_WIDTH:
        from bitnet_trainer.quantization.kernels import tokens

        return tokens.token_codes(x.contiguous(), least)
    codes, codes_per_unit = quantize_activations(at_least_float32(x), least)
    return codes.to(torch.int8).contiguous(), codes_per_unit.float()


def dequantized(tokens: Tensor, codes_per_unit: Tensor, dtype: torch.dtype) -> Tensor:
    """Tokens (N, in) of what `token_codes` made, rounded once."""
    return (tokens / codes_per_unit).to(dtype)
