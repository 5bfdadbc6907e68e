"""Packing ternary codes, four to a byte."""

from importlib import import_module
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet_trainer.errors import BadInput
from bitnet_trainer.triton_kernels import picked

CODES_PER_BYTE = 4


def packed_width(width: int) -> int:
    """Bytes that a row of `width` codes takes: ceil(width / 4)."""
    return -(-width // CODES_PER_BYTE)


def pack_ternary(codes: Tensor) -> Tensor:
    """Packs ternary codes, 2 bits each.

    Byte j of a row holds codes 4j to 4j + 3 as `code + 1`, the first in the lowest bits; places beyond the
    row's end are 0.

    Args:
        codes: (out, in) in {-1, 0, 1}, of any dtype.

    Returns:
        uint8 (out, ceil(in / 4)).

    Raises:
        BadInput: a code is none of the three.
    """
    if bool((codes != codes.sign()).any()):
        stranger = codes[codes != codes.sign()][0].item()
        raise BadInput(f"{stranger} is no ternary code; quantise the weight before packing it")
    return pack_codes(codes)


def pack_codes(codes: Tensor, *, kernel: bool | None = None) -> Tensor:
    """As `pack_ternary`, of codes that are known to be ternary: without a check, which the host waits for.

    Args:
        codes: (..., out, in) in {-1, 0, 1}, of any dtype.
        kernel: by Triton in one pass; None picks by device.

    Returns:
        uint8 (..., out, ceil(in / 4)).
    """
    if picked(codes, kernel):
        packed: Tensor = _kernels().pack(codes)
        return packed
    count, width = packed_width(codes.shape[-1]), codes.shape[-1]
    digits = F.pad((codes + 1).to(torch.uint8), (0, count * CODES_PER_BYTE - width))
    digits = digits.reshape(*codes.shape[:-1], count, CODES_PER_BYTE)
    return (digits << _shifts(codes.device)).sum(dim=-1, dtype=torch.uint8)


def unpack_weights(
    packed: Tensor, width: int, scales: Tensor, dtype: torch.dtype, *, kernel: bool | None = None
) -> Tensor:
    """Codes of many matrices times their scales.

    Args:
        packed: uint8 (..., out, ceil(width / 4)).
        width: codes in a row.
        scales: (...), one a matrix, floating point.
        dtype: of the weights.
        kernel: by Triton in one pass; None picks by device.

    Returns:
        (..., out, width), multiplied in the scales' type.

    Raises:
        BadInput: the rows are not those of that many codes.
    """
    _check_width(packed, width)
    if picked(packed, kernel):
        weights: Tensor = _kernels().unpack(packed, width, scales, dtype)
        return weights
    return (unpack_ternary(packed, width) * scales[..., None, None]).to(dtype)


def unpack_ternary(packed: Tensor, width: int) -> Tensor:
    """Undoes `pack_ternary`.

    Args:
        packed: uint8 (out, ceil(width / 4)).
        width: codes in a row.

    Returns:
        int8 (out, width) in {-1, 0, 1}.

    Raises:
        BadInput: the rows are not those of that many codes.
    """
    _check_width(packed, width)
    digits = (packed.unsqueeze(-1) >> _shifts(packed.device)) & 3
    return digits.flatten(-2)[..., :width].to(torch.int8) - 1


def _check_width(packed: Tensor, width: int) -> None:
    if packed.shape[-1] != packed_width(width):
        raise BadInput(
            f"rows of {packed.shape[-1]} bytes are not rows of {width} codes, "
            f"which take {packed_width(width)}; give the width that was packed"
        )


def _kernels() -> ModuleType:
    # Imported where it is used: Triton takes long to start, and need not be installed.
    return import_module("bitnet_trainer.quantization.kernels.packing")


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(0, 2 * CODES_PER_BYTE, 2, dtype=torch.uint8, device=device)
