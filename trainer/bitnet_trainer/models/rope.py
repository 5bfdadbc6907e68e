"""RoPE: pairs of a head's channels are turned by an angle that grows with position (arXiv 2104.09864)."""

import torch
from torch import Tensor

from bitnet_trainer.errors import BadInput


def angles(position_ids: Tensor, head_dim: int, theta: float) -> Tensor:
    """By how much each pair of channels is turned: `position * theta^(-2i / head_dim)` for pair i, radians.

    Args:
        position_ids: (B, S) or (1, S), each row with positions of its own.
        head_dim: channels of a head; even.
        theta: the base of the frequencies.

    Returns:
        (B, 1, S, head_dim / 2) float32. Heads have their axis here already: angles without it would line up
        with (B, H, S, head_dim) as if B were H.
    """
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    # Inverse first, as transformers rounds: at position 40,000 the last bit of it is 0.004 radians.
    frequencies: Tensor = 1 / theta**exponents
    return position_ids[:, None, :, None].float() * frequencies


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Turns channel i of each head together with channel `i + head_dim / 2`, as transformers' models do.

    Args:
        x: queries or keys (B, H, S, head_dim).
        angle: (B or 1, 1, S, head_dim / 2), as `angles` gives.

    Returns:
        x's shape and dtype.

    Raises:
        BadInput: the angles are of other rows, positions or heads than x.
    """
    batch, _, length, head_dim = x.shape
    if angle.shape not in {(batch, 1, length, head_dim // 2), (1, 1, length, head_dim // 2)}:
        raise BadInput(
            f"angles of shape {tuple(angle.shape)} do not fit queries or keys of shape {tuple(x.shape)}; "
            f"give position_ids of shape ({batch}, {length}) or (1, {length})"
        )
    cos, sin = angle.cos(), angle.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
