"""Where documents begin that share rows and see nothing of each other."""

import torch
import torch.nn.functional as F
from torch import Tensor


def begins(position_ids: Tensor) -> Tensor:
    """(B, S) -> (B, S) bool: a position that does not follow the one before begins a document."""
    return F.pad(position_ids.diff(dim=1) != 1, (1, 0), value=True)


def cumulative_lengths(position_ids: Tensor) -> Tensor | None:
    """Where each document begins if the rows stood one after the other, and where the last one ends.

    Of position_ids (B, S), on the CPU. Returns (N + 1,) int32, in the words of variable-length attention
    `cu_seqlens`: after the last document come empty ones at the end, so that N is one of two sizes for all
    micro batches of a shape, and a compiled layer is compiled for no more. N is the number of programs that
    kernels start for each head and block of a row, and what they hold for a backward pass grows with it.

    None where there are more documents than that, fewer than 64 tokens in one on average: then a dense mask
    costs less memory.
    """
    batch, length = position_ids.shape
    places = begins(position_ids).flatten().nonzero()[:, 0]
    for size in (batch * max(4, length // 256), batch * max(16, length // 64)):
        if len(places) <= size:
            return F.pad(places, (0, size + 1 - len(places)), value=batch * length).int()
    return None


def dense_mask(cu_seqlens: Tensor, batch: int, length: int) -> Tensor:
    """(N + 1,) -> (B, 1, S, S) bool: a token (row) sees itself and what stands before it in its document."""
    tokens = torch.arange(batch * length, device=cu_seqlens.device)
    document = torch.bucketize(tokens, cu_seqlens, right=True).view(batch, 1, length)
    causal = torch.ones(length, length, dtype=torch.bool, device=cu_seqlens.device).tril()
    return causal & (document[..., :, None] == document[..., None, :])


def first_keys(cu_seqlens: Tensor, batch: int, length: int) -> Tensor:
    """(N + 1,) -> (B, S) int32: where in its row each token's document begins."""
    tokens = torch.arange(batch * length, device=cu_seqlens.device, dtype=torch.int32)
    begins = cu_seqlens[torch.bucketize(tokens, cu_seqlens, right=True) - 1]
    rows = torch.arange(batch, device=cu_seqlens.device, dtype=torch.int32)
    return begins.view(batch, length) - rows[:, None] * length
