"""Low-rank correction: its rank, its two beginnings, and that both factors come to have gradients."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from bitnet_trainer.quantization.bitlinear import BitLinear, QuantizationLambda
from bitnet_trainer.quantization.low_rank import (
    LowRankCorrection,
    correction_rank,
    kaiming_correction,
    residual_correction,
)


def residual_of(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().mean()
    return weight - scale * (weight / scale).round().clamp(-1, 1)


@given(st.integers(1, 100), st.integers(1, 5000), st.integers(1, 5000))
@example(29, 100, 100)  # 0.29 * 100 is 28.999999999999996
def test_the_rank_is_the_floor_of_the_share_and_at_least_1(percent: int, out: int, width: int) -> None:
    assert correction_rank(percent / 100, out, width) == max(1, percent * min(out, width) // 100)


def test_the_product_is_u_v_transposed_x() -> None:
    u, v, x = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 2), (7, 2), (3, 4, 7)))
    torch.testing.assert_close(LowRankCorrection(u, v)(x), torch.einsum("or,ir,bsi->bso", u, v, x))


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_residual_correction_is_the_best_of_its_rank_with_equal_shares(rank: int) -> None:
    """Eckart-Young: the error's energy is that of the singular values left out."""
    torch.manual_seed(0)
    residual = residual_of(torch.randn(6, 9, dtype=torch.float64))
    correction = residual_correction(residual, rank)
    u, v = correction.u.detach(), correction.v.detach()
    assert correction.rank == rank
    values = torch.linalg.svdvals(residual)
    error = (residual - u @ v.T).square().sum()
    torch.testing.assert_close(error, values[rank:].square().sum(), atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(u.T @ u, values[:rank].diag())
    torch.testing.assert_close(v.T @ v, values[:rank].diag())


def test_a_kaiming_correction_begins_as_nothing() -> None:
    torch.manual_seed(0)
    correction = kaiming_correction(torch.randn(6, 9), 2)
    assert not correction.u.any()
    assert correction.v.abs().max() <= 1 / 3  # nn.Linear's bound, 1 / sqrt(in)
    assert correction.v.std() > 0.1
    assert not correction(torch.randn(4, 9)).any()


TERNARY = torch.tensor([[1.0, -1, 1, -1], [-1, 1, 1, 1], [1, 1, -1, 1]])


@pytest.mark.parametrize("init", ["Residual", "Kaiming"])
@pytest.mark.parametrize("weight", [TERNARY, torch.zeros(3, 4), TERNARY * torch.rand(3, 4)])
def test_gradients_reach_both_factors_after_one_step(init: str, weight: torch.Tensor) -> None:
    """Also where nothing is left to correct: factors that are both zero would stay so for ever."""
    torch.manual_seed(0)
    correction = (
        residual_correction(residual_of(weight).nan_to_num(), 2)
        if init == "Residual"
        else kaiming_correction(weight, 2)
    )
    assert not ((correction.u == 0).all() and (correction.v == 0).all())
    linear = nn.Linear(4, 3)
    linear.weight = nn.Parameter(weight.clone())
    layer = BitLinear.from_linear(linear, QuantizationLambda(1.0), low_rank=correction)
    optimizer = torch.optim.SGD(correction.parameters(), lr=0.1)
    x, target = torch.randn(8, 4), torch.randn(8, 3)
    for _ in range(2):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    for factor in (correction.u, correction.v):
        assert (factor.grad.abs().amax(dim=0) > 0).all()


def test_a_correction_mends_the_output() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32, bias=False)
    x = torch.randn(16, 64)
    error = {}
    for rank in (0, 4, 16):
        low_rank = residual_correction(residual_of(linear.weight.detach()), rank) if rank else None
        layer = BitLinear.from_linear(linear, QuantizationLambda(1.0), low_rank=low_rank)
        error[rank] = (layer(x) - linear(x)).square().mean().item()
    assert error[16] < error[4] < error[0]
