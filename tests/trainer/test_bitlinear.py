"""BitLinear: its formulas, its straight-through gradient, and the lambda that its layers share."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bitnet_trainer.errors import BadInput
from bitnet_trainer.quantization.bitlinear import BitLinear, QuantizationLambda, blend
from bitnet_trainer.quantization.codes import quantize_activations, quantize_weights
from bitnet_trainer.quantization.low_rank import LowRankCorrection
from bitnet_trainer.quantization.warmup import set_lambda

numbers = st.floats(-1e4, 1e4, allow_nan=False, width=32)
matrices = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=1, max_size=5)
)


@given(matrices)
def test_weight_codes_are_the_papers_formula(rows: list[list[float]]) -> None:
    weight = torch.tensor(rows, dtype=torch.float64)
    flat = [abs(value) for row in rows for value in row]
    scale = max(sum(flat) / len(flat), 1e-5)
    codes, found_scale = quantize_weights(weight)
    assert found_scale.shape == ()
    assert found_scale.item() == pytest.approx(scale, rel=1e-12)
    for row, code_row in zip(rows, codes.tolist(), strict=True):
        for value, code in zip(row, code_row, strict=True):
            near_a_tie = abs(abs(value / scale) - 0.5) < 1e-9
            assert near_a_tie or code == min(1, max(-1, round(value / scale)))


@given(matrices)
def test_activation_codes_are_the_papers_formula(rows: list[list[float]]) -> None:
    codes, codes_per_unit = quantize_activations(torch.tensor(rows, dtype=torch.float64))
    assert codes_per_unit.shape == (len(rows), 1)
    for row, code_row, unit in zip(rows, codes.tolist(), codes_per_unit.flatten().tolist(), strict=True):
        largest = max(*(abs(value) for value in row), 1e-5)
        assert unit == pytest.approx(127 / largest, rel=1e-12)
        for value, code in zip(row, code_row, strict=True):
            exact = 127 * value / largest
            near_a_tie = abs(abs(exact) % 1 - 0.5) < 1e-9
            assert near_a_tie or code == round(exact)


@given(matrices)
def test_a_quantised_activation_is_within_half_a_step(rows: list[list[float]]) -> None:
    x = torch.tensor(rows, dtype=torch.float64)
    codes, codes_per_unit = quantize_activations(x)
    assert ((codes / codes_per_unit - x).abs() <= 0.5 / codes_per_unit * (1 + 1e-9)).all()


@given(matrices)
def test_blend_is_exact_at_both_ends_and_linear_between(rows: list[list[float]]) -> None:
    full = torch.tensor(rows, dtype=torch.float32)
    codes, scale = quantize_weights(full)
    quantized = codes * scale
    assert torch.equal(blend(full, quantized, QuantizationLambda(0.0)), full)
    assert torch.equal(blend(full, quantized, QuantizationLambda(1.0)), quantized)
    middle = blend(full.double(), quantized.double(), QuantizationLambda(0.25))
    torch.testing.assert_close(middle, full.double() + 0.25 * (quantized.double() - full.double()))


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_output_and_gradients_are_those_of_the_formula_in_float64(lam: float) -> None:
    torch.manual_seed(0)
    layer = BitLinear(7, 5, bias=True, dtype=torch.float64, lam=QuantizationLambda(lam))
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 3, 5, dtype=torch.float64)

    weight, scale = layer.weight.detach(), layer.weight.detach().abs().mean()
    effective = weight + lam * (scale * (weight / scale).round().clip(-1, 1) - weight)
    largest = x.detach().abs().amax(-1, keepdim=True)
    inputs = x.detach() + lam * (largest / 127 * (127 * x.detach() / largest).round() - x.detach())
    expected = torch.einsum("bsi,oi->bso", inputs, effective) + layer.bias.detach()

    output = layer(x)
    output.backward(upstream)
    torch.testing.assert_close(output.detach(), expected, rtol=1e-12, atol=1e-12)
    # Straight-through: the gradients of a plain linear at the effective weight and the effective input.
    torch.testing.assert_close(x.grad, upstream @ effective, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        layer.weight.grad, torch.einsum("bso,bsi->oi", upstream, inputs), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_haar_weights_and_all_that_may_stand_beside_them_are_the_formula_in_float64(lam: float) -> None:
    """`y = (W + lam (Wq - W)) Q(n) + b + lam U V^T n`, n the RMSNorm of the input, with all gradients."""
    torch.manual_seed(0)
    norm = nn.RMSNorm(8, 1e-5, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    u, v = torch.randn(5, 2, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)
    layer = BitLinear(
        8,
        5,
        dtype=torch.float64,
        lam=QuantizationLambda(lam),
        scheme="Haar",
        rms_norm=norm,
        low_rank=LowRankCorrection(u, v),
    )
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    output = layer(x)
    upstream = torch.randn_like(output)
    output.backward(upstream)

    twin = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    y = x.detach().clone().requires_grad_()
    n = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * twin["rms_norm.weight"]
    step = n.detach().abs().amax(-1, keepdim=True) / 127
    inputs = n + (lam * (step * (n / step).round() - n)).detach()
    weight = twin["weight"]
    weight = weight + (lam * (haar_in_words(weight) - weight)).detach()
    correction = (n @ twin["low_rank.v"]) @ twin["low_rank.u"].T
    expected = inputs @ weight.T + twin["bias"] + lam * correction
    expected.backward(upstream)

    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-12, atol=1e-12)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, twin[name].grad, rtol=1e-12, atol=1e-12)


def haar_in_words(weight: torch.Tensor) -> torch.Tensor:
    """Each pair (a, b) of a row from its quantised sum and difference."""
    root = math.sqrt(2)
    sums = [[(row[i] + row[i + 1]) / root for i in range(0, len(row), 2)] for row in weight.tolist()]
    differences = [[(row[i] - row[i + 1]) / root for i in range(0, len(row), 2)] for row in weight.tolist()]

    def ternary(band: list[list[float]]) -> list[list[float]]:
        scale = sum(abs(value) for row in band for value in row) / sum(len(row) for row in band)
        return [[scale * min(1, max(-1, round(value / scale))) for value in row] for row in band]

    rows = zip(ternary(sums), ternary(differences), strict=True)
    return torch.tensor(
        [
            [
                value
                for low, high in zip(*bands, strict=True)
                for value in ((low + high) / root, (low - high) / root)
            ]
            for bands in rows
        ],
        dtype=weight.dtype,
    )


def test_at_lambda_0_a_correction_changes_no_bit() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 4)
    correction = LowRankCorrection(torch.randn(4, 2), torch.randn(6, 2))
    layer = BitLinear.from_linear(linear, QuantizationLambda(0.0), low_rank=correction)
    x = torch.randn(3, 6)
    assert torch.equal(layer(x), linear(x))


def test_parameters_have_the_names_that_files_have() -> None:
    layer = BitLinear(
        4, 3, rms_norm=nn.RMSNorm(4), low_rank=LowRankCorrection(torch.zeros(3, 1), torch.zeros(4, 1))
    )
    assert set(layer.state_dict()) == {"weight", "bias", "rms_norm.weight", "low_rank.u", "low_rank.v"}


@pytest.mark.parametrize("scheme", ["AbsMean", "Haar"])
def test_a_whole_layer_in_bfloat16_stays_in_it(scheme: str) -> None:
    torch.manual_seed(0)
    layer = BitLinear(
        8,
        4,
        scheme=scheme,
        rms_norm=nn.RMSNorm(8),
        low_rank=LowRankCorrection(torch.randn(4, 1), torch.randn(8, 1)),
    )
    x = torch.randn(3, 8)
    exact = layer(x)
    found = layer.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.05)


def test_zero_weights_and_zero_tokens_give_zeros() -> None:
    layer = BitLinear(4, 3, bias=False)
    nn.init.zeros_(layer.weight)
    assert torch.equal(layer(torch.zeros(2, 4)), torch.zeros(2, 3))


def test_bfloat16_input_is_quantised_in_float32() -> None:
    torch.manual_seed(0)
    layer = BitLinear(64, 8, bias=False)
    x = torch.randn(3, 64).bfloat16()
    codes, codes_per_unit = quantize_activations(x.float())
    expected = (codes / codes_per_unit).bfloat16() @ layer.effective_weight().bfloat16().T
    assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("quantize", [quantize_weights, quantize_activations])
def test_shorter_types_have_the_codes_and_scales_of_float32(quantize, dtype: torch.dtype) -> None:
    """In bfloat16 codes near a half would turn; in float16 1/1e-5 is infinite and zeros become NaN."""
    torch.manual_seed(0)
    for x in (torch.randn(64, 128).to(dtype), torch.zeros(2, 4, dtype=dtype)):
        codes, scale = quantize(x)
        expected_codes, expected_scale = quantize(x.float())
        assert codes.dtype == dtype
        assert scale.dtype == torch.float32
        assert torch.equal(codes.float(), expected_codes)
        assert torch.equal(scale, expected_scale)


def test_a_bias_takes_part_in_the_inputs_type() -> None:
    layer = BitLinear(8, 4)
    x = torch.randn(3, 8).bfloat16()
    assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x).float(), layer(x.float()), rtol=0.05, atol=0.05)


def two_layers() -> nn.Sequential:
    lam = QuantizationLambda(0.0)
    return nn.Sequential(*(BitLinear.from_linear(nn.Linear(4, 4), lam) for _ in range(2)))


def test_from_linear_holds_the_same_parameters() -> None:
    linear = nn.Linear(4, 3)
    layer = BitLinear.from_linear(linear, QuantizationLambda(0.0))
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    x = torch.randn(2, 4)
    assert torch.equal(layer(x), linear(x))


def test_all_layers_share_one_lambda_through_moves_and_copies() -> None:
    model = two_layers()
    for moved in (model, copy.deepcopy(model), two_layers().to(torch.float64), two_layers().to("meta")):
        assert moved[0].lam.value is moved[1].lam.value
    set_lambda(model, 0.25)
    assert [layer.lam.value.item() for layer in model] == [0.25, 0.25]


def test_lambda_is_in_no_state_dict() -> None:
    assert set(two_layers().state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}


@pytest.mark.parametrize("scheme", ["AbsMean", "Haar"])
def test_a_new_lambda_compiles_nothing_again_until_it_is_one(scheme: str) -> None:
    compilations = 0

    def counting(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        nonlocal compilations
        compilations += 1
        return graph

    model = two_layers()
    for layer in model:
        layer.scheme = scheme
    compiled = torch.compile(model, backend=counting, fullgraph=True)
    x = torch.randn(2, 4)
    for value, expected in ((0.0, 1), (0.1, 1), (0.5, 1), (1.0, 2), (0.5, 2)):
        set_lambda(compiled, value)
        torch.testing.assert_close(compiled(x), model(x))
        assert compilations == expected


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_lambda_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(BadInput, match="outside"):
        set_lambda(two_layers(), value)


def test_lambda_of_an_unconverted_model_is_refused() -> None:
    with pytest.raises(BadInput, match="convert the model first"):
        set_lambda(nn.Sequential(nn.Linear(2, 2)), 0.5)
