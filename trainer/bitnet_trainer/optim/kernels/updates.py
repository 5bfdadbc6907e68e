"""Muon's arithmetic around Newton-Schulz: two kernels over many matrices of a size, wherever each one is."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_trainer.kernels.addresses import addresses, at

_BLOCK = 2048


def advance(
    gradients: list[Tensor],
    momenta: list[Tensor],
    *,
    share: float,
    dtype: torch.dtype,
    divisor: Tensor | None,
    skipped: Tensor | None,
) -> Tensor:
    """As `bitnet_trainer.optim.updates.advance`, for float32."""
    like = momenta[0]
    out = torch.empty(len(momenta), *like.shape, dtype=dtype, device=like.device)
    of_gradients, of_momenta = addresses(gradients, momenta)
    _advance[_grid(like, len(momenta))](
        of_gradients,
        of_momenta,
        of_momenta if divisor is None else divisor,
        of_momenta if skipped is None else skipped.view(torch.uint8),
        out,
        like.numel(),
        share,
        divided=divisor is not None,
        guarded=skipped is not None,
        block=_BLOCK,
        num_warps=8,
        enable_fp_fusion=False,
    )
    return out


def move(
    weights: list[Tensor], directions: Tensor, *, keep: float, step: float, skipped: Tensor | None
) -> None:
    """As `bitnet_trainer.optim.updates.move`, for float32 weights."""
    like = weights[0]
    (places,) = addresses(weights)
    _move[_grid(like, len(weights))](
        places,
        directions.contiguous(),
        places if skipped is None else skipped.view(torch.uint8),
        keep,
        step,
        like.numel(),
        guarded=skipped is not None,
        block=_BLOCK,
        num_warps=8,
        enable_fp_fusion=False,
    )


def _grid(like: Tensor, count: int) -> tuple[int, int]:
    return triton.cdiv(like.numel(), _BLOCK), count


@triton.jit
def _advance(
    gradients,
    momenta,
    divisor,
    skipped,
    out,
    count,
    share,
    divided: tl.constexpr,
    guarded: tl.constexpr,
    block: tl.constexpr,
):
    number = tl.program_id(1).to(tl.int64)
    offsets = tl.program_id(0) * block + tl.arange(0, block)
    inside = offsets < count
    place = at(momenta, number) + offsets
    gradient = tl.load(at(gradients, number) + offsets, mask=inside, other=0.0)
    if divided:
        # As torch rounds it; `/` is off by up to 2 ulp.
        gradient = tl.div_rn(gradient, tl.load(divisor))
    before = tl.load(place, mask=inside, other=0.0)
    moved = before + share * (gradient - before)
    # lerp(gradient, moved, 1 - share) as torch rounds it.
    direction = moved - (moved - gradient) * share
    end = count
    if guarded:
        end = tl.where(tl.load(skipped) == 0, count, 0)
    tl.store(place, moved, mask=offsets < end)
    tl.store(out + number * count + offsets, direction.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _move(weights, directions, skipped, keep, step, count, guarded: tl.constexpr, block: tl.constexpr):
    number = tl.program_id(1).to(tl.int64)
    offsets = tl.program_id(0) * block + tl.arange(0, block)
    inside = offsets < count
    place = at(weights, number) + offsets
    weight = tl.load(place, mask=inside, other=0.0)
    direction = tl.load(directions + number * count + offsets, mask=inside, other=0.0).to(tl.float32)
    end = count
    if guarded:
        end = tl.where(tl.load(skipped) == 0, count, 0)
    tl.store(place, weight * keep - step * direction, mask=offsets < end)
