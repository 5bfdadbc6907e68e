"""Parameters that FSDP2 shards, as optimisers see them: a rank's own part, and the whole."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, in the tensor's own memory; all of it where it is not sharded."""
    if not isinstance(tensor, DTensor):
        return tensor
    part: Tensor = tensor.to_local()
    return part


def gathered(part: Tensor, like: Tensor) -> Tensor:
    """The whole of what the ranks hold parts of, cut as `like` is; every rank calls it, and waits for it."""
    if not isinstance(like, DTensor):
        return part
    sharded = DTensor.from_local(
        part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    whole: Tensor = sharded.full_tensor()
    return whole


def cut(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of `whole`, whose rows are cut as those of `like` are. Nothing is sent."""
    if not isinstance(like, DTensor):
        return whole
    return own_part(distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None))


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The L2 norm of all gradients as one vector, 0-dim, whole on every rank, without the host waiting."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
