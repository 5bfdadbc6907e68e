"""The product of 8-bit tokens and ternary weights, exact in integers and scaled once at its end."""

import torch
from torch import Tensor


def int8_product(
    codes: Tensor, codes_per_unit: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """`(codes @ weight^T) * scale / codes_per_unit`: int8 x int8, added up in int32. Has no gradient.

    Args:
        codes: (N, in) int8, contiguous; of tokens, as `quantize_activations` makes them.
        codes_per_unit: (N, 1) float32, contiguous.
        weight: (out, in) int8, contiguous; a matrix's codes.
        scale: () float32, the matrix's.
        dtype: of the result.

    Returns:
        (N, out).
    """
    if codes.is_cuda:  # which BitLinear only asks for where there are kernels
        # Triton takes a second to import, and is of no use without a GPU.
        from bitnet_trainer.quantization.kernels.int8_product_triton import launched

        return launched(codes, codes_per_unit, weight, scale, dtype)
    # Float64 holds any such sum: 127 * 128 * in stays far below 2^53.
    total = codes.double() @ weight.double().T
    return (total.float() * (scale / codes_per_unit)).to(dtype)
