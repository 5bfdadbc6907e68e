"""A linear of Haar weights by its codes: dequantised for each product, and kept as codes in between.

What `BitLinear` computes at lambda 1. The backward pass has a byte of each weight, and of each value of a
token.
"""

from typing import Any

import torch
from torch import Tensor

from bitnet_trainer.precision import product
from bitnet_trainer.quantization.haar import HaarCodes, haar_codes, haar_weights
from bitnet_trainer.quantization.int8_training import dequantized, token_codes


def haar_linear(
    x: Tensor, weight: Tensor, dtype: torch.dtype, kept: HaarCodes | None = None, *, kernel: bool = True
) -> Tensor:
    """`Q(x) Wq^T` with Haar weights Wq and 8-bit Q(x), each rounded to the dtype of the products.

    Args:
        x: (..., in) floating point; quantised by token in float32 or better.
        weight: (out, in) floating point, `in` even; gets the gradient that Wq would.
        dtype: of the products and of the result.
        kept: the weight's `haar_codes`, where somebody has them; the weight is not read then.
        kernel: whether Triton's kernels make codes of weights, and weights of codes.

    Returns:
        (..., out).

    Raises:
        BadInput: `in` is odd.
    """
    rows = x.reshape(-1, x.shape[-1])
    found: Tensor = _HaarLinear.apply(rows, weight, dtype, kept, kernel)
    return found.view(*x.shape[:-1], weight.shape[0])


class _HaarLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype, kept: HaarCodes | None, kernel: bool
    ) -> Tensor:
        tokens, codes_per_unit = token_codes(x)
        codes, scales = haar_codes(weight, kernel=kernel) if kept is None else kept
        ctx.save_for_backward(tokens, codes_per_unit, codes, scales)
        ctx.dtypes, ctx.kernel = (x.dtype, weight.dtype), kernel
        quantized = haar_weights(codes, scales, dtype, kernel=kernel)
        return dequantized(tokens, codes_per_unit, dtype) @ quantized.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        tokens, codes_per_unit, codes, scales = ctx.saved_tensors
        of_x, of_weight = ctx.dtypes
        to_x = (gradient @ haar_weights(codes, scales, gradient.dtype, kernel=ctx.kernel)).to(of_x)
        # Transposed, or torch's compiler finds that the forward pass made them, and keeps two bytes a value.
        inputs = dequantized(tokens.T, codes_per_unit.T, gradient.dtype).T
        to_weight = product(gradient.T, inputs, of_weight)
        return to_x, to_weight, None, None, None
