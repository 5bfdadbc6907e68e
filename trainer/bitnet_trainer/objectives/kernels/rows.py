"""What losses need of logits (n, V), row by row, and its gradient written over them.

In plain operations, which are right everywhere; on CUDA by kernels that read a row twice and write it once.
"""

import math
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitnet_trainer.precision import at_least_float32
from bitnet_trainer.triton_kernels import picked


class Pull(NamedTuple):
    """What pulls at a row, (n,) of the sums' type: the gradient of `mass * s' - tail * s` in x / T. Here s is
    the log of the sum of exp(x / T) over the row, and s' that of exp(s) + exp(apart)."""

    apart: Tensor
    """The same log-sum of what belongs to the row but does not stand in it; -inf for nothing."""
    mass: Tensor
    tail: Tensor


def log_sums(logits: Tensor, temperature: float, pull: Pull | None = None) -> Tensor:
    """By row, the log of the sum of exp(logits / T).

    Args:
        logits: (n, V); a row's numbers lie side by side. With `pull` its gradient is written over them.
        temperature: T > 0.
        pull: what to write; none leaves the logits as they are.

    Returns:
        (n,), float32 or better; -inf where all are -inf, not finite where one is NaN or +inf.
    """
    if (kernels := _kernels(logits)) is not None:
        found: Tensor = kernels.log_sums(logits, temperature, pull)
        return found
    scaled = at_least_float32(logits)
    if temperature != 1:
        scaled = scaled / temperature
    sums = scaled.logsumexp(-1)
    if pull is not None:
        factors = pull.mass * torch.sigmoid(sums - pull.apart) - pull.tail
        base = torch.where(sums == -math.inf, 0.0, sums)
        scaled.sub_(base[:, None]).exp_().mul_(factors[:, None])
        if scaled is not logits:
            logits.copy_(scaled)
    return sums


def divergences(logits: Tensor, goal: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
    """By row, KL(softmax(goal / T) || softmax(logits / T)).

    Args:
        logits: (n, V); a row's numbers lie side by side. With `weights`, the gradient of the weighted
            divergence in logits / T is written over them.
        goal: (n, V), likewise; stays as it is. A token of -inf, which it rules out, counts for nothing.
        temperature: T > 0.
        weights: (n,) of the result's type.

    Returns:
        (n,) in nats, unweighted, float32 or better.
    """
    if (kernels := _kernels(logits, goal)) is not None:
        found: Tensor = kernels.divergences(logits, goal, temperature, weights)
        return found
    log_goal, log_own = ((at_least_float32(side) / temperature).log_softmax(-1) for side in (goal, logits))
    terms = log_goal - log_own
    # A logit of -inf would make 0 * inf.
    ruled_out = log_goal == -math.inf
    outcomes = log_goal.exp_()
    found = terms.mul_(outcomes).masked_fill_(ruled_out, 0.0).sum(-1)
    if weights is not None:
        logits.copy_(log_own.exp_().sub_(outcomes).mul_(weights[:, None]))
    return found


def _kernels(*logits: Tensor) -> Any:
    """The module of the Triton kernels, where they can take these logits."""
    if all(picked(each, None) for each in logits):
        return import_module("bitnet_trainer.objectives.kernels.rows_triton")
    return None
