"""SubLN in a BitLinear: transformers' norm, before the input is quantised, trained like any other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.integrations.bitnet import AutoBitLinear

from bitnet_trainer.quantization.bitlinear import BitLinear, QuantizationLambda


@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_a_layer_with_a_norm_is_transformers_auto_bit_linear_bit_for_bit(epsilon: float) -> None:
    torch.manual_seed(0)
    stock = AutoBitLinear(24, 8, online_quant=True, use_rms_norm=True, rms_norm_eps=epsilon)
    nn.init.normal_(stock.rms_norm.weight)
    layer = BitLinear(24, 8, rms_norm=nn.RMSNorm(24, epsilon))
    layer.load_state_dict(stock.state_dict())
    x = 0.1 * torch.randn(5, 24)
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(layer(x), stock(x))


def test_the_norm_is_of_the_unquantised_input() -> None:
    """Its gain comes before the quantisation, so that a channel with a gain of 0 takes no room in it."""
    layer = BitLinear(2, 1, bias=False, rms_norm=nn.RMSNorm(2, 0.0))
    nn.init.ones_(layer.weight)
    with torch.no_grad():
        layer.rms_norm.weight.copy_(torch.tensor([0.0, 1.0]))
    root_mean_square = ((100.0**2 + 0.1**2) / 2) ** 0.5
    assert layer(torch.tensor([[100.0, 0.1]])).item() == pytest.approx(0.1 / root_mean_square, rel=1e-5)


@given(st.floats(0.01, 1000))
def test_the_size_of_a_token_does_not_matter(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = BitLinear(8, 4, rms_norm=nn.RMSNorm(8, 0.0, dtype=torch.float64), dtype=torch.float64)
    layer.lam = QuantizationLambda(0.0)
    x = torch.randn(3, 8, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(layer(factor * x), layer(x))


def test_the_gain_is_trained() -> None:
    layer = BitLinear(8, 4, rms_norm=nn.RMSNorm(8, 1e-6))
    layer(torch.randn(3, 8)).square().sum().backward()
    assert (layer.rms_norm.weight.grad.abs() > 0).all()


def test_a_layer_without_one_has_none() -> None:
    assert BitLinear(8, 4).rms_norm is None
    assert set(BitLinear(8, 4).state_dict()) == {"weight", "bias"}
