"""What is between the products of a gated MLP, a token a program: each value is read once, and nothing on the
way from the products to codes is rounded."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_trainer.quantization.codes import MINIMUM_SCALE
from bitnet_trainer.quantization.int8_training import LEAST_GRADIENT
from bitnet_trainer.quantization.kernels.tokens import TO_WHOLE, larger, to_code


def gated_codes(gate: Tensor, up: Tensor, linear: float, cubic: float) -> tuple[Tensor, Tensor]:
    """`gated_training.gated_codes` of (N, I), contiguous."""
    rows, width = gate.shape
    codes = torch.empty(rows, width, dtype=torch.int8, device=gate.device)
    codes_per_unit = torch.empty(rows, 1, dtype=torch.float32, device=gate.device)
    block = triton.next_power_of_2(width)
    codes_kernel[(rows,)](
        gate,
        up,
        codes,
        codes_per_unit,
        width,
        linear=linear,
        cubic=cubic,
        least=MINIMUM_SCALE,
        to_whole=TO_WHOLE,
        block=block,
        num_warps=warps(block),
    )
    return codes, codes_per_unit


def gated_gradients(
    gradient: Tensor,
    gate: Tensor,
    up: Tensor,
    codes_per_unit: Tensor,
    scales: tuple[Tensor, Tensor],
    linear: float,
    cubic: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`gated_training.gated_gradients` of (N, I), contiguous: the parts of `GatedGradients`."""
    rows, width = gate.shape
    to_gate, to_up, gated = (torch.empty_like(gate) for _ in range(3))
    codes = torch.empty(rows, 2 * width, dtype=torch.int8, device=gate.device)
    per_unit = torch.empty_like(codes_per_unit)
    block = triton.next_power_of_2(width)
    gradients_kernel[(rows,)](
        gradient,
        gate,
        up,
        codes_per_unit,
        *scales,
        to_gate,
        to_up,
        gated,
        codes,
        per_unit,
        width,
        linear=linear,
        cubic=cubic,
        least=LEAST_GRADIENT,
        to_whole=TO_WHOLE,
        block=block,
        num_warps=warps(block),
    )
    return to_gate, to_up, gated, codes, per_unit


def warps(block: int) -> int:
    """Of a program: 16 values a thread, of which nothing is spilled."""
    return min(max(block // 512, 4), 32)


@triton.jit
def _share(gate, linear: tl.constexpr, cubic: tl.constexpr):
    """What of a gate its activation lets through."""
    slope = linear
    if cubic != 0:
        slope += cubic * gate * gate
    return tl.sigmoid(slope * gate)


@triton.jit
def codes_kernel(
    gate,
    up,
    codes,
    codes_per_unit,
    width,
    linear: tl.constexpr,
    cubic: tl.constexpr,
    least: tl.constexpr,
    to_whole: tl.constexpr,
    block: tl.constexpr,
):
    """One token of `gated_codes` a program."""
    row = tl.program_id(0).to(tl.int64) * width
    place = tl.arange(0, block)
    inside = place < width
    gates = tl.load(gate + row + place, mask=inside, other=0).to(tl.float32)
    ups = tl.load(up + row + place, mask=inside, other=0).to(tl.float32)
    gated = gates * _share(gates, linear, cubic) * ups
    unit = tl.math.div_rn(127.0, larger(tl.reduce(tl.abs(gated), 0, larger), least))
    tl.store(codes + row + place, to_code(gated, unit, to_whole), mask=inside)
    tl.store(codes_per_unit + tl.program_id(0), unit)


@triton.jit
def gradients_kernel(
    gradient,
    gate,
    up,
    codes_per_unit,
    gate_scale,
    up_scale,
    to_gate,
    to_up,
    gated,
    codes,
    per_unit,
    width,
    linear: tl.constexpr,
    cubic: tl.constexpr,
    least: tl.constexpr,
    to_whole: tl.constexpr,
    block: tl.constexpr,
):
    """One token of `gated_gradients` a program."""
    row = tl.program_id(0).to(tl.int64) * width
    place = tl.arange(0, block)
    inside = place < width
    gates = tl.load(gate + row + place, mask=inside, other=0).to(tl.float32)
    ups = tl.load(up + row + place, mask=inside, other=0).to(tl.float32)
    arriving = tl.load(gradient + row + place, mask=inside, other=0).to(tl.float32)
    share = _share(gates, linear, cubic)
    active = gates * share
    slope = linear
    if cubic != 0:
        slope += 3 * cubic * gates * gates
    for_gate = arriving * ups * (share + active * (1 - share) * slope)
    for_up = arriving * active
    tl.store(to_gate + row + place, for_gate.to(to_gate.dtype.element_ty), mask=inside)
    tl.store(to_up + row + place, for_up.to(to_up.dtype.element_ty), mask=inside)
    # The codes of the way there again, and not kept: they are a byte a value.
    unit = tl.load(codes_per_unit + tl.program_id(0))
    rounded = (active * ups * unit + to_whole - to_whole) * (1 / unit)
    tl.store(gated + row + place, rounded.to(gated.dtype.element_ty), mask=inside)
    # One size for both halves, so that one product adds them up.
    for_gate *= tl.load(gate_scale)
    for_up *= tl.load(up_scale)
    largest = tl.reduce(larger(tl.abs(for_gate), tl.abs(for_up)), 0, larger)
    unit = tl.math.div_rn(127.0, larger(largest, least))
    codes += 2 * row + place
    tl.store(codes, to_code(for_gate, unit, to_whole), mask=inside)
    tl.store(codes + width, to_code(for_up, unit, to_whole), mask=inside)
    tl.store(per_unit + tl.program_id(0), unit)
