"""One step of Muon on many matrices, sharded or not: momentum, made orthogonal."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from bitnet_trainer.optim.newton_schulz import newton_schulz, working_type
from bitnet_trainer.optim.shards import cut_each, gathered, own_part
from bitnet_trainer.optim.updates import advance, move
from bitnet_trainer.triton_kernels import has_kernels

MOMENTUM = 0.95
RMS = 0.2
"""Root mean square of an update at a learning rate of 1, whatever the matrix's shape: about AdamW's."""
LARGEST_BATCH = 2**27
"""Numbers in the matrices that are gone through at once: 256 MiB in bfloat16."""


@dataclass(frozen=True)
class Kernels:
    """Which parts of a step are done by Triton kernels."""

    updates: bool = False
    """Momenta and weights."""
    products: bool = False
    """Symmetric products of Newton-Schulz, half of each."""

    @classmethod
    def of(cls, device: torch.device) -> "Kernels":
        """Those that pay on a device."""
        there = has_kernels(device)
        return cls(updates=there, products=there)


def muon_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    *,
    learning_rate: float,
    weight_decay: float,
    divisor: Tensor | None = None,
    skipped: Tensor | None = None,
    kernels: Kernels | None = None,
) -> None:
    """Changes weights and momenta in place. Matrices of one shape are gone through together.

    `M = 0.95 M + 0.05 G`, then `W = W (1 - rate * decay) - rate * 0.2 sqrt(max(n, m)) NS(0.95 M + 0.05 G)`.
    That is Nesterov's momentum up to a factor, which NS takes out. Source: arXiv 2502.16982.

    Sharded by FSDP2, momenta and updates are the ranks' own parts, and NS, which needs the whole matrix, is
    computed by every rank alike: a step gathers as many bytes as a forward pass, holds a batch of matrices
    whole at a time, and takes as long on many ranks as on one.

    Args:
        weights: (n, m) each, of any shapes.
        gradients: of the weights' shapes.
        momenta: of the weights' shapes, 0 at first.
        learning_rate: of this step.
        weight_decay: its share of the weight a step, times the rate.
        divisor: 0-dim float32 on the device, by which gradients are divided as they are read; None: 1.
        skipped: 0-dim bool on the device; where True nothing changes, whatever is in gradients and divisor.
        kernels: what Triton does; None picks by device.
    """
    for batch in _batches(weights):
        like = weights[batch[0]]
        used = Kernels.of(like.device) if kernels is None else kernels
        own, own_gradients, own_momenta = (
            [own_part(tensors[number]) for number in batch] for tensors in (weights, gradients, momenta)
        )
        ahead = advance(
            own_gradients,
            own_momenta,
            share=1 - MOMENTUM,
            dtype=working_type(like),
            divisor=divisor,
            skipped=skipped,
            kernel=used.updates,
        )
        directions = cut_each(newton_schulz(gathered(ahead, like), symmetric=used.products), like)
        move(
            own,
            directions,
            keep=1 - learning_rate * weight_decay,
            step=learning_rate * RMS * math.sqrt(max(like.shape)),
            skipped=skipped,
            kernel=used.updates,
        )


def _batches(weights: Sequence[Tensor]) -> Iterator[list[int]]:
    """Places of weights that are alike, in their order, as many as go through together; the same on all
    ranks."""
    alike: dict[object, list[int]] = {}
    for number, weight in enumerate(weights):
        cuts = (weight.device_mesh, weight.placements) if isinstance(weight, DTensor) else None
        alike.setdefault((weight.shape, weight.dtype, weight.device, cuts), []).append(number)
    for numbers in alike.values():
        most = max(1, LARGEST_BATCH // max(1, weights[numbers[0]].numel()))
        count = -(-len(numbers) // most)
        for part in range(count):
            yield numbers[part * len(numbers) // count : (part + 1) * len(numbers) // count]
