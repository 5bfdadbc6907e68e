"""Clips the whole gradient without a pass over it: the update divides as it reads."""

import torch
from torch import Tensor

from bitnet_trainer.optim.shards import total_norm


def clip_in_update(optimizer: torch.optim.Optimizer, largest: float) -> Tensor:
    """Has the next `optimizer.step()` scale all gradients so that their norm is at most `largest`.

    As `torch.nn.utils.clip_grad_norm_` before that step, sharded or not, for MuonClip, FusedAdamW and torch's
    fused optimisers. These divide by their `grad_scale`, and it stays until the next call, so call it before
    each step. After the step no gradient is to be read: torch's leave theirs divided, kernels of ours do not.

    Where the norm is not finite, neither is what comes of the step: see NonFiniteGuard.

    Args:
        optimizer: of everything that is trained, with its gradients.
        largest: above 0.

    Returns:
        The norm before, as `total_norm`.
    """
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    norm = total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    # No branch on the norm, which the host would wait for.
    divisor = ((norm + 1e-6) / largest).clamp(min=1.0)
    optimizer.grad_scale = divisor.float()  # type: ignore[attr-defined]  # read by fused optimisers
    return norm
