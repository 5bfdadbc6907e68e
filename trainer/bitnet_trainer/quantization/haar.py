"""Haar weights: each row split into a low and a high band, each band ternary with a scale of its own.

Source: HBLLM, arXiv 2512.00862. The transform is orthonormal, so that an error in the bands is an error of
the same energy in the weights.
"""

import math
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from bitnet_trainer.errors import BadInput
from bitnet_trainer.precision import at_least_float32
from bitnet_trainer.quantization.codes import quantize_weights
from bitnet_trainer.triton_kernels import picked

_ROOT = 1 / math.sqrt(2)
"""Multiplied by, which rounds alike on every device; a division by sqrt2 does not."""


class HaarCodes(NamedTuple):
    """Ternary weights in their bands, without gradient."""

    codes: Tensor
    """(..., out, in) int8 in {-1, 0, 1}, laid out [low | high]."""
    scales: Tensor
    """(..., 2), of low and high, at least float32."""


def haar_transform_1d_row(x: Tensor) -> Tensor:
    """One level of the Haar transform along the last dimension.

    `low = (even + odd) / sqrt2`, `high = (even - odd) / sqrt2`, of neighbours at even and odd places.

    Args:
        x: (..., n), n even.

    Returns:
        (..., n), laid out [low | high].

    Raises:
        BadInput: n is odd.
    """
    _check_even(x.shape[-1])
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat(((even + odd) * _ROOT, (even - odd) * _ROOT), dim=-1)


def inverse_haar_transform_1d_row(x: Tensor) -> Tensor:
    """Undoes `haar_transform_1d_row`: (..., n) laid out [low | high] -> (..., n). Raises as that does."""
    _check_even(x.shape[-1])
    low, high = x.chunk(2, dim=-1)
    return torch.stack(((low + high) * _ROOT, (low - high) * _ROOT), dim=-1).flatten(-2)


def haar_weight_quantization_no_scale(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Ternary codes of a weight matrix's bands, and their scales: absmean, one scale a band of the matrix.

    Args:
        weight: (out, in) floating point, `in` even.

    Returns:
        codes (out, in) in {-1, 0, 1}, laid out [low | high], in the weight's dtype, and the scales (2,) of
        low and high, at least float32. Neither has a gradient.

    Raises:
        BadInput: `in` is odd.
    """
    bands = haar_transform_1d_row(at_least_float32(weight.detach())).chunk(2, dim=-1)
    codes, scales = zip(*(quantize_weights(band) for band in bands), strict=True)
    return torch.cat(codes, dim=-1).to(weight.dtype), torch.stack(scales)


def dequantize_haar(codes: Tensor, scales: Tensor) -> Tensor:
    """The weight (out, in) of codes (out, in), laid out [low | high], and the scales (2,) of their bands.

    Of many matrices likewise: codes (..., out, in), scales (..., 2).
    """
    low, high = codes.chunk(2, dim=-1)
    of_low, of_high = (scales[..., band, None, None] for band in (0, 1))
    return inverse_haar_transform_1d_row(torch.cat((low * of_low, high * of_high), dim=-1))


def haar_weight_quantization(weight: Tensor) -> Tensor:
    """The weight (out, in) as its quantised bands give it back, in its dtype and without gradient.

    Raises BadInput where `in` is odd.
    """
    full = at_least_float32(weight)
    return dequantize_haar(*haar_weight_quantization_no_scale(full)).to(weight.dtype)


def haar_codes(weights: Tensor, *, kernel: bool | None = None) -> HaarCodes:
    """Codes and scales of many matrices, as `haar_weight_quantization_no_scale` has them of one.

    Args:
        weights: (..., out, in) floating point, `in` even.
        kernel: by Triton in two passes over the weights, in float32; None picks by device. A compiled graph
            cannot ask for that, and has to be told.

    Returns:
        Those of each matrix. A kernel adds up in another order than torch, so that its scales may differ in
        the last place, and codes at a tie.

    Raises:
        BadInput: `in` is odd.
    """
    _check_even(weights.shape[-1])
    if picked(weights, kernel):
        return HaarCodes(*_kernels().haar_codes(weights.detach()))
    flat = weights.reshape(-1, *weights.shape[-2:])
    codes, scales = zip(*(haar_weight_quantization_no_scale(weight) for weight in flat), strict=True)
    whole = torch.stack(codes).to(torch.int8).reshape(weights.shape)
    return HaarCodes(whole, torch.stack(scales).reshape(*weights.shape[:-2], 2))


def haar_weights(codes: Tensor, scales: Tensor, dtype: torch.dtype, *, kernel: bool | None = None) -> Tensor:
    """What `haar_codes` found, as weights again.

    Args:
        codes: int8 (..., out, in), laid out [low | high].
        scales: (..., 2).
        dtype: of the weights.
        kernel: by Triton in one pass; None picks by device, as above.

    Returns:
        (..., out, in), computed in the scales' type.

    Raises:
        BadInput: `in` is odd.
    """
    _check_even(codes.shape[-1])
    if picked(codes, kernel):
        found: Tensor = _kernels().haar_weights(codes, scales, dtype)
        return found
    return dequantize_haar(codes, scales).to(dtype)


def _kernels() -> ModuleType:
    # Imported where it is used: Triton takes long to start, and need not be installed. Not by a function,
    # which a compiled graph would break at.
    from bitnet_trainer.quantization.kernels import haar

    return haar


def _check_even(width: int) -> None:
    if width % 2:
        raise BadInput(
            f"a row of {width} values has no Haar transform, which pairs neighbours; "
            "use a matrix of even width, or quantization.weights: AbsMean"
        )
