"""Triton's kernels of optimisers and quantisation on CUDA, against their twins in torch and float64."""

import math

import pytest
import torch

from bitnet_trainer.optim.muon import Kernels, muon_step
from bitnet_trainer.optim.newton_schulz import newton_schulz
from bitnet_trainer.optim.products import self_product
from bitnet_trainer.quantization.gated_training import (
    SILU,
    TANH_GELU,
    Activation,
    gated_codes,
    gated_gradients,
    gated_mlp,
)
from bitnet_trainer.quantization.haar import haar_codes, haar_transform_1d_row, haar_weights
from bitnet_trainer.quantization.heads_training import projected_heads, turned, turned_back
from bitnet_trainer.quantization.int8_training import int8_codes
from bitnet_trainer.quantization.packing import pack_codes, unpack_weights

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
SIZES = [(3, 256, 640), (2, 640, 256), (2, 200, 200), (1, 72, 1000)]


def drawn(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator(CUDA).manual_seed(0), device=CUDA)


@pytest.mark.parametrize("size", SIZES)
def test_half_a_product_mirrored_is_the_whole(size: tuple[int, int, int]) -> None:
    for x in (drawn(*size).bfloat16(), drawn(*size).bfloat16().mT):
        plus = self_product(x, kernel=True)
        assert torch.equal(plus, plus.mT)
        found = self_product(x, plus, alpha=0.5, beta=-2.0, shift=3.0, kernel=True).double()
        eye = torch.eye(x.shape[1], dtype=torch.float64, device=CUDA)
        exact = 0.5 * x.double() @ x.double().mT - 2 * plus.double() + 3 * eye
        torch.testing.assert_close(found, exact, rtol=2**-8, atol=1e-2)


@pytest.mark.parametrize("size", SIZES)
def test_newton_schulz_by_kernels_is_no_less_exact(size: tuple[int, int, int]) -> None:
    x = drawn(*size).bfloat16()
    exact = newton_schulz(x.cpu().double()).to(CUDA)
    whole, half = ((newton_schulz(x, symmetric=way).double() - exact).norm() for way in (False, True))
    assert half < 1.2 * whole < 0.03 * exact.norm()


@pytest.mark.parametrize("poison", [0.0, math.nan])
def test_updates_by_kernels_are_torchs(poison: float) -> None:
    """And where the gradient is poisoned, and the step left out, none."""
    weights, gradients, momenta = drawn(3, 5, 250, 130).unbind()
    gradients = gradients + poison
    skipped = torch.tensor(math.isnan(poison), device=CUDA)
    found = []
    for updates in (True, False):
        own, own_momenta = weights.clone(), momenta.clone()
        muon_step(
            list(own.unbind()),
            list(gradients.unbind()),
            list(own_momenta.unbind()),
            learning_rate=0.02,
            weight_decay=0.1,
            divisor=torch.tensor(3.7 + poison, device=CUDA),
            skipped=skipped,
            kernels=Kernels(updates=updates),
        )
        found.append(torch.stack((own, own_momenta)))
    if math.isnan(poison):
        assert torch.equal(found[0], torch.stack((weights, momenta)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_haar_by_kernels_is_haar_by_torch(size: tuple[int, int, int]) -> None:
    weights = drawn(*size)
    codes, scales = haar_codes(weights, kernel=True)
    expected_codes, expected_scales = haar_codes(weights, kernel=False)
    torch.testing.assert_close(scales, expected_scales, rtol=1e-6, atol=0)
    exact = haar_transform_1d_row(weights).unflatten(-1, (2, -1)) / expected_scales[:, None, :, None]
    at_a_tie = ((exact.abs() - 0.5).abs() < 1e-5).flatten(-2)
    assert ((codes == expected_codes) | at_a_tie).all()
    for dtype in (torch.float32, torch.bfloat16):
        found = haar_weights(codes, scales, dtype, kernel=True)
        assert torch.equal(found, haar_weights(codes, scales, dtype, kernel=False))


@pytest.mark.parametrize("size", [*SIZES, (2, 3, 7)])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32])
def test_packing_by_kernels_is_packing_by_torch(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    codes = drawn(*size).round().clamp(-1, 1).to(dtype)
    scales = 1 + drawn(size[0]).abs()
    packed = pack_codes(codes, kernel=True)
    assert torch.equal(packed, pack_codes(codes, kernel=False))
    for wanted in (torch.float32, torch.bfloat16):
        found = unpack_weights(packed, size[-1], scales, wanted, kernel=True)
        assert torch.equal(found, unpack_weights(packed, size[-1], scales, wanted, kernel=False))


@pytest.mark.parametrize("activation", [SILU, TANH_GELU])
@pytest.mark.parametrize("size", [(33, 1536), (16, 3072), (3, 16_384)])
def test_a_gate_by_kernels_is_a_gate_by_torch(size: tuple[int, int], activation: Activation) -> None:
    """But for ties, which other roundings of float32 make and break."""
    gate, up, gradient = drawn(3, *size).bfloat16().unbind()
    scales = torch.tensor(0.02, device=CUDA), torch.tensor(0.05, device=CUDA)
    codes, per_unit = gated_codes(gate, up, activation)
    made = gated_gradients(gradient, gate, up, per_unit, scales, activation)
    gate, up, gradient, *scales = (each.cpu() for each in (gate, up, gradient, *scales))
    expected, expected_per_unit = gated_codes(gate, up, activation)
    twin = gated_gradients(gradient, gate, up, expected_per_unit, tuple(scales), activation)
    torch.testing.assert_close(per_unit.cpu(), expected_per_unit, rtol=1e-5, atol=0)
    torch.testing.assert_close(made.codes_per_unit.cpu(), twin.codes_per_unit, rtol=1e-5, atol=0)
    torch.testing.assert_close(made.to_gate.cpu(), twin.to_gate, rtol=2**-7, atol=1e-5)
    torch.testing.assert_close(made.to_up.cpu(), twin.to_up, rtol=2**-7, atol=1e-5)
    for one, other in (
        (codes, expected),
        ((made.gated * per_unit).round(), expected),
        (made.codes, twin.codes),
    ):
        away = (one.cpu().float() - other.float()).abs()
        assert away.max() <= 1
        assert away.mean() < 1e-3


def test_a_gated_mlp_on_cuda_is_the_cpus() -> None:
    x, upstream, *weights = (each.bfloat16() for each in drawn(5, 256, 256).unbind())
    found = []
    for device in ("cuda", "cpu"):
        factors = [each.to(device).float().requires_grad_() for each in (x, *weights)]
        y = gated_mlp(factors[0], factors[1:], SILU, torch.bfloat16)
        found.append([y, *torch.autograd.grad(y, factors, upstream.to(device))])
    for one, other in zip(*found, strict=True):
        assert (one.cpu().double() - other.double()).norm() < 0.01 * other.double().norm()


@pytest.mark.parametrize(
    ("normed", "rows"),
    [(True, 1), (False, 1), (True, 2)],
    ids=["normed", "plain", "normed, each row with its own positions"],
)
@pytest.mark.parametrize(("heads", "channels"), [((16, 8), 128), ((9, 3), 64), ((8, 1), 256), ((32, 8), 128)])
def test_kernels_around_heads_are_their_twins(
    heads: tuple[int, int], channels: int, normed: bool, rows: int
) -> None:
    """In float64, but for ties; more tokens than programs."""
    tokens, length = 2 * 4100, 4100
    shapes = [(tokens, many, channels) for many in (*heads, *heads, heads[1])]
    queries, keys, *gradients = (drawn(*shape).bfloat16() for shape in shapes)
    cosines, sines = drawn(rows, length, channels).cos(), drawn(rows, length, channels // 2).sin()
    turns = cosines[..., : channels // 2], sines
    gains = drawn(2, channels) + 2
    scales = [torch.tensor(size, device=CUDA) for size in (0.02, 0.05, 0.03)]

    def back(device: str, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, ...]:
        q, k, to_q, to_k, to_v, *given = (
            each.to(device, dtype) for each in (queries, keys, *gradients, *turns, *gains)
        )
        both, of_heads = (given[0], given[1]), (given[2], given[3]) if normed else None
        there = turned((q, k), of_heads, both, 1e-6)
        units = tuple(each.to(device, dtype) for each in scales)
        return *there, *turned_back((to_q, to_k, to_v), (q, k), of_heads, both, units, 1e-6)

    *values, codes, per_unit, to_gains = (each.cpu() for each in back("cuda"))
    *exact, exact_codes, exact_per_unit, exact_gains = back("cpu", torch.float64)
    for one, other in zip(values, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2**-7, atol=1e-4)
    torch.testing.assert_close(per_unit, exact_per_unit, rtol=1e-4, atol=0)
    away = (codes.float() - exact_codes.float()).abs()
    assert away.max() <= 1
    assert away.mean() < 1e-3
    if normed:
        torch.testing.assert_close(to_gains.double(), exact_gains, rtol=1e-3, atol=1e-3 * tokens**0.5)


def test_heads_on_cuda_are_the_cpus() -> None:
    x, *weights = (each.bfloat16() for each in drawn(4, 256, 256).unbind())
    gains, angle = drawn(2, 64) + 2, drawn(1, 128, 32)
    found = []
    for device in ("cuda", "cpu"):
        factors = [each.to(device).float().requires_grad_() for each in (x, *weights, *gains)]
        turns = angle.cos().to(device), angle.sin().to(device)
        rows = factors[0].view(2, 128, 256)
        heads = projected_heads(rows, factors[1:4], (factors[4], factors[5]), turns, 1e-6, torch.bfloat16)
        upstream = [each.to(device).bfloat16().view(2, 128, 4, 64) for each in drawn(3, 256, 256)]
        found.append([*heads, *torch.autograd.grad(heads, factors, upstream)])
    for one, other in zip(*found, strict=True):
        assert (one.cpu().double() - other.double()).norm() < 0.01 * other.double().norm()


def test_codes_of_many_weights_are_those_of_each() -> None:
    """But for ties, which another order of adding up makes and breaks."""
    from bitnet_trainer.quantization.kernels import weights as kernels

    weights = [drawn(*size) * 0.02 for size in [(3072, 1024), (64, 64), (5, 7), (1024, 3072), (1, 4096)]]
    for chosen in (weights, weights[:2]):  # without the odd one a program reads more at a time
        codes = [torch.full_like(weight, 7, dtype=torch.int8) for weight in chosen]
        scales = torch.empty(len(chosen), 4, device=CUDA)[:, 0].unbind()
        kernels.int8_codes(chosen, codes, list(scales))
        for weight, own, scale in zip(chosen, codes, scales, strict=True):
            expected = int8_codes(weight.cpu().double())
            torch.testing.assert_close(scale.cpu().double(), expected.scale, rtol=1e-6, atol=0)
            away = own.cpu().double() - expected.codes
            assert away.abs().max() <= 1
            assert away.abs().mean() < 1e-5
