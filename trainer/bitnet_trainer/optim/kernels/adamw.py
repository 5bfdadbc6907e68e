"""AdamW over parameters of any sizes, wherever each is: a kernel for step counts, and one for weights."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_trainer.kernels.addresses import addresses, at, blocks_of, multiple_in, part_of

_BLOCK = 2048
_COUNTS = 128


def adamw(
    weights: list[Tensor],
    gradients: list[Tensor],
    averages: list[Tensor],
    squares: list[Tensor],
    counts: list[Tensor],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    divisor: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """One step in place, of all but the gradients, which are only read.

    Args:
        weights: N of any sizes; these and the next three float32 and as `triton_kernels.suited` has it.
        gradients: of the weights' sizes.
        averages: the first moments.
        squares: the second moments.
        counts: N of 0-dim float32, the steps before this one.
        learning_rate: of this step.
        betas: what the moments keep of themselves, each above 0.
        epsilon: added to the root of the second moment.
        weight_decay: its share of the weight a step, times the rate.
        divisor: 0-dim float32 on the device, by which gradients are divided as they are read; None: 1.
        found_inf: 0-dim float32 on the device; where 1 nothing changes. None: 0.
    """
    device, number = weights[0].device, len(weights)
    table = addresses(weights, gradients, averages, squares, counts)
    lengths = tuple(weight.numel() for weight in weights)
    owners, blocks = blocks_of(lengths, _BLOCK, device)
    corrections = torch.empty(2, number, dtype=torch.float32, device=device)
    found_inf = torch.zeros((), device=device) if found_inf is None else found_inf
    divisor = torch.ones((), device=device) if divisor is None else divisor
    adamw_count[(triton.cdiv(number, _COUNTS),)](
        table,
        corrections,
        found_inf,
        number,
        learning_rate,
        log_average=math.log(betas[0]),
        log_square=math.log(betas[1]),
        block=_COUNTS,
        enable_fp_fusion=False,
    )
    adamw_update[(len(owners),)](
        table,
        owners,
        blocks,
        corrections,
        found_inf,
        divisor,
        number,
        *betas,
        # Of Python's numbers: float32's 1 - 0.95 is off by 2e-7.
        *(1 - beta for beta in betas),
        epsilon,
        learning_rate * weight_decay,
        multiple=multiple_in(lengths),
        block=_BLOCK,
        num_warps=8,
        enable_fp_fusion=False,
    )


@triton.jit
def adamw_count(
    table,
    corrections,
    found_inf,
    number,
    rate,
    log_average: tl.constexpr,
    log_square: tl.constexpr,
    block: tl.constexpr,
):
    """Counts the step. (2, N): how far a weight moves, and what the second moment's root is divided by."""
    if tl.load(found_inf) == 1:
        return
    numbers = tl.program_id(0) * block + tl.arange(0, block)
    inside = numbers < number
    places = tl.load(table + 4 * number + numbers, mask=inside, other=0).to(tl.pointer_type(tl.float32))
    count = tl.load(places, mask=inside, other=0.0) + 1
    tl.store(places, count, mask=inside)
    # In float64, since a power near 1 leaves few digits of the difference.
    steps = count.to(tl.float64)
    average = 1 - tl.exp(steps * log_average)
    square = 1 - tl.exp(steps * log_square)
    tl.store(corrections + numbers, (rate / average).to(tl.float32), mask=inside)
    tl.store(corrections + number + numbers, tl.sqrt(square).to(tl.float32), mask=inside)


@triton.jit
def adamw_update(
    table,
    owners,
    blocks,
    corrections,
    found_inf,
    divisor,
    number,
    keep_average,
    keep_square,
    share_average,
    share_square,
    epsilon,
    decay,
    multiple: tl.constexpr,
    block: tl.constexpr,
):
    if tl.load(found_inf) == 1:
        return
    owner, begin, left = part_of(owners, blocks, number, block, multiple)
    weights, gradients = at(table, owner) + begin, at(table, number + owner) + begin
    averages, squares = at(table, 2 * number + owner) + begin, at(table, 3 * number + owner) + begin
    rate, root = tl.load(corrections + owner), tl.load(corrections + number + owner)
    offsets = tl.arange(0, block)
    inside = offsets < left
    # As torch rounds it, here and below; `/` is off by up to 2 ulp.
    gradient = tl.div_rn(tl.load(gradients + offsets, mask=inside, other=0.0), tl.load(divisor))
    weight = tl.load(weights + offsets, mask=inside, other=0.0)
    average = tl.load(averages + offsets, mask=inside, other=0.0)
    square = tl.load(squares + offsets, mask=inside, other=0.0)
    average = keep_average * average + share_average * gradient
    square = keep_square * square + share_square * gradient * gradient
    step = tl.div_rn(rate * average, tl.div_rn(tl.sqrt_rn(square), root) + epsilon)
    tl.store(weights + offsets, weight - decay * weight - step, mask=inside)
    tl.store(averages + offsets, average, mask=inside)
    tl.store(squares + offsets, square, mask=inside)
