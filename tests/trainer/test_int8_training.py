"""Products of codes: BitLinear's formula at lambda 1, exact; weights quantised once for many passes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bitnet_trainer.quantization import kept_codes
from bitnet_trainer.quantization.bitlinear import BitLinear, QuantizationLambda
from bitnet_trainer.quantization.codes import quantize_activations, quantize_weights
from bitnet_trainer.quantization.int8_training import (
    LEAST_GRADIENT,
    PackedCodes,
    int8_codes,
    int8_linear,
)
from bitnet_trainer.quantization.kept_codes import codes_kept
from bitnet_trainer.quantization.kernels.int8_product import int8_product
from bitnet_trainer.quantization.packing import pack_ternary
from bitnet_trainer.quantization.schemes import SchemeName

sizes = st.integers(1, 40)


def _tensors(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=chance, dtype=torch.float64) for shape in shapes]


@given(st.integers(0, 2**20), sizes, sizes, sizes, st.sampled_from([1.0, 1e-9]), st.booleans())
def test_output_and_gradients_are_those_of_the_formula(
    seed: int, tokens: int, inner: int, out: int, size: float, int8_backward: bool
) -> None:
    """Also of gradients far below what a token's values may be."""
    x, weight, upstream = _tensors(seed, (2, tokens, inner), (out, inner), (2, tokens, out))
    upstream = upstream * size
    x.requires_grad_()
    weight.requires_grad_()
    product = int8_linear(x, weight, torch.float64, int8_backward=int8_backward)
    product.backward(upstream)
    codes, per_unit = quantize_activations(x)
    ternary, scale = quantize_weights(weight)
    close = {"rtol": 1e-5, "atol": 1e-5}  # scales are float32
    torch.testing.assert_close(product, (codes / per_unit) @ (ternary * scale).T, **close)
    arriving = upstream
    if int8_backward:
        rounded, rounded_per_unit = quantize_activations(upstream, LEAST_GRADIENT)
        arriving = rounded / rounded_per_unit
    close["atol"] *= size
    torch.testing.assert_close(x.grad, arriving @ (ternary * scale), **close)
    rows = (upstream.flatten(0, 1), (codes / per_unit).flatten(0, 1))
    torch.testing.assert_close(weight.grad, rows[0].T @ rows[1], **close)


def test_a_token_without_gradient_gets_none_and_one_that_is_no_number_stays_so() -> None:
    x, weight, upstream = _tensors(0, (3, 4), (5, 4), (3, 5))
    x.requires_grad_()
    upstream[0], upstream[2, 1] = 0, math.nan
    int8_linear(x, weight, torch.float64).backward(upstream)
    assert (x.grad[0] == 0).all()
    assert x.grad[1].isfinite().all()
    assert x.grad[1].any()
    assert x.grad[2].isnan().all()


@pytest.mark.parametrize("width", [5, 8])
def test_packed_codes_are_as_good(width: int) -> None:
    x, weight, other, upstream = _tensors(0, (3, width), (6, width), (6, width), (3, 6))
    codes = int8_codes(other)
    packed = PackedCodes(pack_ternary(codes.codes), codes.scale)
    made = []
    for kept in (codes, packed):
        factors = x.clone().requires_grad_(), weight.clone().requires_grad_()
        product = int8_linear(*factors, torch.float64, kept)
        made.append((product, *torch.autograd.grad(product, factors, upstream)))
    assert all(torch.equal(one, two) for one, two in zip(*made, strict=True))


def test_the_sums_are_exact_where_bfloat16_is_not() -> None:
    """256 and 1 are both bfloat16, and 257 is not."""
    codes = torch.tensor([[127, 127, 2, 1]], dtype=torch.int8)
    one = torch.ones(1, 1)
    product = int8_product(codes, one, torch.ones(1, 4, dtype=torch.int8), one[0, 0], torch.float32)
    assert product.item() == 257


@pytest.mark.parametrize(("rows", "inner", "columns"), [(130, 144, 129), (5, 16, 129)])
def test_the_kernel_is_its_twin(rows: int, inner: int, columns: int) -> None:
    from bitnet_trainer.quantization.kernels.int8_product_triton import launched

    torch.manual_seed(0)
    codes = torch.randint(-128, 128, (rows, inner), dtype=torch.int8)
    weight = torch.randint(-1, 2, (columns, inner), dtype=torch.int8)
    per_unit, scale = torch.rand(rows, 1) + 0.5, torch.rand(())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = launched(*(each.to(device) for each in (codes, per_unit, weight, scale)), torch.float32)
    expected = int8_product(codes, per_unit, weight, scale, torch.float32)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", [7, 48, 1100])
def test_codes_of_tokens_are_their_twins(width: int) -> None:
    from bitnet_trainer.quantization.kernels.tokens import token_codes

    torch.manual_seed(0)
    x = torch.randn(4, width)
    x[0] = 0
    # Ties, which round to even.
    x[1] = 0
    x[1, :4] = torch.tensor([127.0, 0.5, 1.5, -2.5])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    codes, per_unit = (each.cpu() for each in token_codes(x.to(device)))
    expected, expected_per_unit = quantize_activations(x)
    torch.testing.assert_close(per_unit, expected_per_unit, rtol=2e-7, atol=0)
    assert torch.equal(codes[:2].float(), expected[:2])
    assert (codes.float() - expected).abs().max() <= 1
    assert (codes.float() != expected).float().mean() < 0.01


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of the interpreter
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_token_with_a_number_that_is_none_stays_without_one(bad: float) -> None:
    """Else a step would pass for good, with a token in it that nobody computed."""
    from bitnet_trainer.quantization.kernels.tokens import token_codes

    x = torch.ones(2, 7)
    x[0, 3] = bad
    device = "cuda" if torch.cuda.is_available() else "cpu"
    codes, per_unit = (each.cpu() for each in token_codes(x.to(device)))
    weight = torch.ones(3, 7, dtype=torch.int8)
    product = int8_product(codes, per_unit, weight, torch.ones(()), torch.float32)
    assert product.isfinite().all(dim=1).tolist() == [False, True]


def _layers(lam: float = 1.0) -> nn.ModuleList:
    torch.manual_seed(0)
    shared = QuantizationLambda(lam)
    return nn.ModuleList(nn.Sequential(BitLinear(8, 8, lam=shared), nn.Linear(8, 8)) for _ in range(2))


def test_kept_codes_are_those_of_the_weights_and_go_again() -> None:
    layers = _layers()
    quantized = [layer[0] for layer in layers]
    with codes_kept(layers):
        for layer in quantized:
            codes, scale = int8_codes(layer.weight)
            assert torch.equal(layer.kept.codes, codes)
            assert torch.equal(layer.kept.scale, scale)
            assert not layer.kept.scale.requires_grad
    assert all(layer.kept is None for layer in quantized)


@pytest.mark.parametrize("scheme", ["AbsMean", "Haar"])
def test_kept_codes_lie_where_they_did_if_they_are_to(scheme: SchemeName) -> None:
    """Which a graph counts on that was recorded with them."""
    layer = BitLinear(8, 8, scheme=scheme)
    places = []
    for _ in range(3):
        torch.nn.init.normal_(layer.weight)
        expected = layer.effective_weight()
        with codes_kept([layer], in_place=True):
            places.append([each.data_ptr() for each in layer.kept])
            assert torch.equal(layer.effective_weight(), expected)
        assert layer.kept is None
    assert places == [places[0]] * 3


def test_kept_codes_go_where_a_pass_fails_too() -> None:
    layers = _layers()

    def fail() -> None:
        with codes_kept(layers):
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    quantized = [layer[0] for layer in layers]
    assert all(layer.kept is None for layer in quantized)


def test_kept_codes_take_the_weights_place_but_for_its_gradient() -> None:
    x, weight, other = _tensors(0, (3, 8), (5, 8), (5, 8))
    weight.requires_grad_()
    product = int8_linear(x, weight, torch.float64, int8_codes(other))
    torch.testing.assert_close(product, int8_linear(x, other, torch.float64))
    product.sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_kernels_keep_nothing_before_lambda_is_one(lam: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_codes, "int8_codes", lambda _weight: pytest.fail("quantised"))
    layers = _layers(lam)
    layers[0][0].lam.kernels = True
    with codes_kept(layers):
        assert all(layer[0].kept is None for layer in layers)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_without_kernels_kept_codes_are_what_passes_take(lam: float) -> None:
    layers = _layers(lam)
    expected = layers[0][0].effective_weight()
    with codes_kept(layers):
        assert torch.equal(layers[0][0].effective_weight(), expected)
        layers[0][0].kept.codes.zero_()
        assert torch.equal(layers[0][0].effective_weight(), expected) == (lam == 0)
