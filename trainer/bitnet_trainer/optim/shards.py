"""Parameters that FSDP2 shards, as optimisers see them: a rank's own part, and the whole."""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Shard, distribute_tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, in the tensor's own memory; all of it where it is not sharded."""
    if not isinstance(tensor, DTensor):
        return tensor
    part: Tensor = tensor.to_local()
    return part


def gathered(parts: Tensor, like: Tensor) -> Tensor:
    """The whole of what the ranks hold parts of; every rank calls it, and waits for it.

    `parts` (B, ...) are one rank's of B tensors, each cut as `like` is; together they are gathered at once.
    """
    if not isinstance(like, DTensor):
        return parts
    shape = torch.Size((len(parts), *like.shape))
    sharded = DTensor.from_local(
        parts.contiguous(), like.device_mesh, _one_on(like), shape=shape, stride=_strides(shape)
    )
    whole: Tensor = sharded.full_tensor()
    return whole


def cut(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of `whole`, whose rows are cut as those of `like` are. Nothing is sent."""
    if not isinstance(like, DTensor):
        return whole
    return own_part(distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None))


def cut_each(wholes: Tensor, like: Tensor) -> Tensor:
    """This rank's parts of `wholes` (B, ...), each of which is cut as `like` is. Nothing is sent."""
    if not isinstance(like, DTensor):
        return wholes
    return own_part(distribute_tensor(wholes, like.device_mesh, _one_on(like), src_data_rank=None))


def _one_on(like: DTensor) -> list[Placement]:
    """How a stack of such tensors is cut, each as `like` is."""
    return [
        Shard(placement.dim + 1) if isinstance(placement, Shard) else placement
        for placement in like.placements
    ]


def _strides(shape: torch.Size) -> tuple[int, ...]:
    """Of a contiguous tensor."""
    return tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all gradients as one vector, 0-dim, the same on every rank, without the host waiting."""
    # Of plain tensors, since torch goes through DTensors one by one.
    norm = torch.nn.utils.get_total_norm([own_part(gradient) for gradient in gradients])
    meshes = {gradient.device_mesh for gradient in gradients if isinstance(gradient, DTensor)}
    for mesh in meshes:
        # Squared in float64, which holds the square of any float32.
        squared = norm.double().square()
        dist.all_reduce(squared, group=mesh.get_group())
        norm = squared.sqrt().to(norm.dtype)
    return norm
