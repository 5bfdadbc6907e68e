"""Packing ternary codes, four to a byte."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet_trainer.errors import BadInput

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
    rows, width = codes.shape
    padding = packed_width(width) * CODES_PER_BYTE - width
    digits = F.pad((codes + 1).to(torch.uint8), (0, padding)).view(rows, -1, CODES_PER_BYTE)
    return (digits << _shifts(codes.device)).sum(dim=-1, dtype=torch.uint8)


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
    if packed.shape[-1] != packed_width(width):
        raise BadInput(
            f"rows of {packed.shape[-1]} bytes are not rows of {width} codes, "
            f"which take {packed_width(width)}; give the width that was packed"
        )
    digits = (packed.unsqueeze(-1) >> _shifts(packed.device)) & 3
    return digits.flatten(-2)[..., :width].to(torch.int8) - 1


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(0, 2 * CODES_PER_BYTE, 2, dtype=torch.uint8, device=device)
