"""One step of Muon on one matrix, sharded or not: momentum, made orthogonal."""

import math

import torch
from torch import Tensor

from bitnet_trainer.optim.newton_schulz import newton_schulz
from bitnet_trainer.optim.shards import cut, gathered, own_part

MOMENTUM = 0.95
RMS = 0.2
"""Root mean square of an update at a learning rate of 1, whatever the matrix's shape: about AdamW's."""


def muon_step(
    weight: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    *,
    learning_rate: float,
    weight_decay: float,
    skipped: Tensor | None = None,
) -> None:
    """Changes weight and momentum in place.

    `M = 0.95 M + 0.05 G`, then `W = W (1 - rate * decay) - rate * 0.2 sqrt(max(n, m)) NS(0.95 M + 0.05 G)`.
    That is Nesterov's momentum up to a factor, which NS takes out. Source: arXiv 2502.16982.

    Sharded by FSDP2, momentum and update are the ranks' own parts, and NS, which needs the whole matrix, is
    computed by every rank alike: a step gathers as many bytes as a forward pass, holds one matrix whole at a
    time, and takes as long on many ranks as on one.

    Args:
        weight: (n, m).
        gradient: (n, m).
        momentum: (n, m), 0 at first.
        learning_rate: of this step.
        weight_decay: its share of the weight a step, times the rate.
        skipped: 0-dim bool on the device; where True nothing changes, whatever is in the gradient.
    """
    step = learning_rate * RMS * math.sqrt(max(weight.shape))
    own, own_gradient, own_momentum = own_part(weight), own_part(gradient), own_part(momentum)
    moved = own_momentum.lerp(own_gradient, 1 - MOMENTUM)
    direction = cut(newton_schulz(gathered(own_gradient.lerp(moved, MOMENTUM), weight)), weight)
    updated = (own * (1 - learning_rate * weight_decay)).add_(direction, alpha=-step)
    # Chosen, not multiplied: 0 times a NaN is a NaN.
    own_momentum.copy_(moved if skipped is None else torch.where(skipped, own_momentum, moved))
    own.copy_(updated if skipped is None else torch.where(skipped, own, updated))
