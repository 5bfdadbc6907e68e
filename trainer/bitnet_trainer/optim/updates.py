"""What Muon does to each number before and after Newton-Schulz, over many matrices of one size at once."""

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from bitnet_trainer.triton_kernels import suited


def advance(
    gradients: list[Tensor],
    momenta: list[Tensor],
    *,
    share: float,
    dtype: torch.dtype,
    divisor: Tensor | None = None,
    skipped: Tensor | None = None,
    kernel: bool = False,
) -> Tensor:
    """Takes the gradients into the momenta, in place, and looks ahead by Nesterov.

    `M = (1 - share) M + share G`, then `(1 - share) M + share G` again is the direction.

    Args:
        gradients: B of (n, m).
        momenta: B of (n, m).
        share: of the gradient, from 0 to a half.
        dtype: of what comes back.
        divisor: 0-dim float32 on the device, by which gradients are divided as they are read; None: 1.
        skipped: 0-dim bool on the device; where True the momenta stay, whatever is in gradients and divisor.
        kernel: by Triton, where the tensors allow it.

    Returns:
        (B, n, m), the directions.
    """
    if kernel and suited([*gradients, *momenta]):
        advanced: Tensor = _kernels().advance(
            gradients, momenta, share=share, dtype=dtype, divisor=divisor, skipped=skipped
        )
        return advanced
    divided = gradients if divisor is None else torch._foreach_div(gradients, divisor)
    moved = torch._foreach_lerp(momenta, divided, share)
    directions = torch.stack(torch._foreach_lerp(divided, moved, 1 - share)).to(dtype)
    _put(momenta, moved, skipped)
    return directions


def move(
    weights: list[Tensor],
    directions: Tensor,
    *,
    keep: float,
    step: float,
    skipped: Tensor | None = None,
    kernel: bool = False,
) -> None:
    """`W = keep W - step D`, in place.

    Args:
        weights: B of (n, m).
        directions: (B, n, m), of any floating type.
        keep: what decay leaves of a weight.
        step: how far along its direction.
        skipped: 0-dim bool on the device; where True nothing changes, whatever is in the directions.
        kernel: by Triton, where the tensors allow it.
    """
    if kernel and suited(weights):
        _kernels().move(weights, directions, keep=keep, step=step, skipped=skipped)
        return
    moved = torch._foreach_mul(weights, keep)
    torch._foreach_add_(moved, directions.to(weights[0].dtype).unbind(), alpha=-step)
    _put(weights, moved, skipped)


def _put(goals: list[Tensor], values: tuple[Tensor, ...], skipped: Tensor | None) -> None:
    if skipped is None:
        torch._foreach_copy_(goals, values)
        return
    # Chosen, not multiplied: 0 times a NaN is a NaN.
    for goal, value in zip(goals, values, strict=True):
        goal.copy_(torch.where(skipped, goal, value))


def _kernels() -> ModuleType:
    # Imported where it is used: Triton takes long to start, and need not be installed.
    return import_module("bitnet_trainer.optim.kernels.updates")
