"""Haar weights: the transform is orthonormal, its bands ternary, and a layer's weight what they say."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet_trainer.errors import BadInput
from bitnet_trainer.quantization.bitlinear import BitLinear, QuantizationLambda
from bitnet_trainer.quantization.codes import quantize_weights
from bitnet_trainer.quantization.haar import (
    dequantize_haar,
    haar_transform_1d_row,
    haar_weight_quantization,
    haar_weight_quantization_no_scale,
    inverse_haar_transform_1d_row,
)

numbers = st.floats(-1e4, 1e4, allow_nan=False, width=32)
even_matrices = st.integers(1, 5).flatmap(
    lambda pairs: st.lists(st.lists(numbers, min_size=2 * pairs, max_size=2 * pairs), min_size=1, max_size=5)
)


@given(even_matrices)
def test_the_transform_is_its_formula_and_its_inverse_undoes_it(rows: list[list[float]]) -> None:
    x = torch.tensor(rows, dtype=torch.float64)
    bands = haar_transform_1d_row(x)
    half = len(rows[0]) // 2
    for row, found in zip(rows, bands.tolist(), strict=True):
        for i in range(half):
            assert found[i] == pytest.approx((row[2 * i] + row[2 * i + 1]) / math.sqrt(2), abs=1e-9)
            assert found[half + i] == pytest.approx((row[2 * i] - row[2 * i + 1]) / math.sqrt(2), abs=1e-9)
    torch.testing.assert_close(inverse_haar_transform_1d_row(bands), x, rtol=1e-12, atol=1e-9)


@given(even_matrices)
def test_energy_is_kept(rows: list[list[float]]) -> None:
    x = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(
        haar_transform_1d_row(x).square().sum(-1), x.square().sum(-1), rtol=1e-12, atol=1e-9
    )


def test_leading_dimensions_are_rows() -> None:
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    each = torch.stack([torch.stack([haar_transform_1d_row(row) for row in matrix]) for matrix in x])
    assert torch.equal(haar_transform_1d_row(x), each)
    torch.testing.assert_close(inverse_haar_transform_1d_row(each), x)


@given(even_matrices)
def test_each_band_is_ternary_with_a_scale_of_its_own(rows: list[list[float]]) -> None:
    weight = torch.tensor(rows, dtype=torch.float64)
    codes, scales = haar_weight_quantization_no_scale(weight)
    assert codes.shape == weight.shape
    assert scales.shape == (2,)
    assert set(codes.unique().tolist()) <= {-1.0, 0.0, 1.0}
    half = weight.shape[1] // 2
    bands = haar_transform_1d_row(weight)
    for band, band_codes, scale in zip(
        bands.split(half, dim=1), codes.split(half, dim=1), scales, strict=True
    ):
        assert scale.item() == pytest.approx(max(band.abs().mean().item(), 1e-5), rel=1e-12)
        exact = band / scale
        near_a_tie = ((exact.abs() - 0.5).abs() < 1e-9).numpy()
        expected = exact.round().clamp(-1, 1)
        assert ((band_codes == expected).numpy() | near_a_tie).all()


@given(even_matrices)
def test_the_four_functions_agree_with_a_layer_of_the_scheme(rows: list[list[float]]) -> None:
    weight = torch.tensor(rows, dtype=torch.float32)
    layer = BitLinear(weight.shape[1], len(rows), bias=False, lam=QuantizationLambda(1.0), scheme="Haar")
    layer.weight = torch.nn.Parameter(weight)
    quantized = haar_weight_quantization(weight)
    assert torch.equal(layer.effective_weight(), quantized)
    codes, scales = haar_weight_quantization_no_scale(weight)
    assert torch.equal(dequantize_haar(codes, scales), quantized)
    half = weight.shape[1] // 2
    scaled = codes * scales.repeat_interleave(half)
    assert torch.equal(inverse_haar_transform_1d_row(scaled), quantized)


@given(even_matrices)
def test_the_error_in_the_weight_has_the_energy_of_the_error_in_the_bands(rows: list[list[float]]) -> None:
    weight = torch.tensor(rows, dtype=torch.float64)
    codes, scales = haar_weight_quantization_no_scale(weight)
    in_bands = haar_transform_1d_row(weight) - codes * scales.repeat_interleave(weight.shape[1] // 2)
    torch.testing.assert_close(
        (haar_weight_quantization(weight) - weight).square().sum(),
        in_bands.square().sum(),
        rtol=1e-9,
        atol=1e-6,
    )


def test_a_weight_of_two_sizes_comes_back_where_one_scale_would_lose_it() -> None:
    """Neighbours a + d and a - d with |a| = 3 and |d| = 1: the bands have one size each."""
    torch.manual_seed(0)
    mean, difference = (torch.randn(4, 8, dtype=torch.float64).sign() for _ in range(2))
    weight = torch.stack((3 * mean + difference, 3 * mean - difference), dim=-1).flatten(1)
    torch.testing.assert_close(haar_weight_quantization(weight), weight)
    codes, scale = quantize_weights(weight)
    assert (codes * scale - weight).abs().min() > 0.9


def test_codes_have_no_gradient_and_the_transform_has() -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    assert not any(found.requires_grad for found in haar_weight_quantization_no_scale(weight))
    assert not haar_weight_quantization(weight).requires_grad
    haar_transform_1d_row(weight).sum().backward()
    assert weight.grad is not None


def test_zeros_stay_zeros() -> None:
    assert torch.equal(haar_weight_quantization(torch.zeros(2, 4)), torch.zeros(2, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weight", [torch.randn(64, 128), torch.zeros(2, 4)], ids=["random", "zeros"])
def test_shorter_types_have_the_codes_and_scales_of_float32(weight, dtype) -> None:
    codes, scales = haar_weight_quantization_no_scale(weight.to(dtype))
    exact = weight.to(dtype).float()
    expected_codes, expected_scales = haar_weight_quantization_no_scale(exact)
    assert (codes.dtype, scales.dtype) == (dtype, torch.float32)
    assert torch.equal(codes.float(), expected_codes)
    assert torch.equal(scales, expected_scales)
    assert torch.equal(haar_weight_quantization(weight.to(dtype)), haar_weight_quantization(exact).to(dtype))


@pytest.mark.parametrize(
    "function",
    [
        haar_transform_1d_row,
        inverse_haar_transform_1d_row,
        haar_weight_quantization,
        haar_weight_quantization_no_scale,
    ],
)
def test_an_odd_width_is_refused_by_its_number(function) -> None:
    with pytest.raises(BadInput, match="a row of 7 values"):
        function(torch.zeros(2, 7))
