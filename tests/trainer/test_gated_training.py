"""A gated MLP as one function of codes: its formula, its kernels beside their twins, where it is taken."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitnet_trainer.models import gated as models_gated
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.gated import GatedMLP
from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.codes import quantize_weights
from bitnet_trainer.quantization.gated_training import (
    SILU,
    TANH_GELU,
    Activation,
    gated_codes,
    gated_gradients,
    gated_mlp,
)
from bitnet_trainer.quantization.int8_training import (
    dequantized,
    int8_codes,
    int8_linear,
    token_codes,
)
from families import small_model
from functions_of_codes import CHANGES, drawn, launches_in_one_graph

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    SILU: F.silu,
    TANH_GELU: lambda gate: F.gelu(gate, approximate="tanh"),
}
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS, ids=["SiLU", "GELU"])
sizes = st.integers(1, 24)


@each_activation
@given(st.integers(0, 2**20), sizes, sizes, sizes, sizes, st.sampled_from([1.0, 1e-9]))
def test_output_and_gradients_are_those_of_the_formula(
    activation: Activation, seed: int, tokens: int, inner: int, width: int, out: int, size: float
) -> None:
    shapes = (tokens, inner), (width, inner), (width, inner), (out, width), (tokens, out)
    x, *weights, upstream = drawn(seed, *shapes)
    # Of large negative gates nothing is left of 1 + tanh, as torch computes GELU.
    x, upstream = x / 10, upstream * size
    for factor in (x, *weights):
        factor.requires_grad_()
    y = gated_mlp(x, weights, activation, torch.float64)
    y.backward(upstream)
    gate, up = (int8_linear(x, weight, torch.float64).detach().requires_grad_() for weight in weights[:2])
    (of_gate, s_gate), (of_up, s_up), (of_down, s_down) = (quantize_weights(weight) for weight in weights)
    close = {"rtol": 1e-5, "atol": 1e-5 * size}  # scales are float32
    h = ACTIVATIONS[activation](gate) * up
    codes, per_unit = gated_codes(gate, up, activation)
    assert _are_codes(codes, per_unit, h)
    quantized = dequantized(codes, per_unit, torch.float64)
    torch.testing.assert_close(y, quantized @ (of_down * s_down).T, rtol=1e-5, atol=1e-5)
    arriving = torch.zeros_like(h, requires_grad=True)
    int8_linear(arriving, weights[2].detach(), torch.float64).backward(upstream)
    for_gate, for_up = torch.autograd.grad(h, (gate, up), arriving.grad)
    inputs = dequantized(*token_codes(x), torch.float64)
    torch.testing.assert_close(weights[0].grad, for_gate.T @ inputs, **close)
    torch.testing.assert_close(weights[1].grad, for_up.T @ inputs, **close)
    made = gated_gradients(arriving.grad, gate, up, per_unit, (s_gate, s_up), activation)
    assert _are_codes(made.codes, made.codes_per_unit, torch.cat((for_gate * s_gate, for_up * s_up), dim=1))
    assert _are_codes(made.gated * per_unit, per_unit, h)
    torch.testing.assert_close(weights[2].grad, upstream.T @ made.gated, **close)
    both = dequantized(made.codes, made.codes_per_unit, torch.float64)
    torch.testing.assert_close(x.grad, both @ torch.cat((of_gate, of_up)), **close)


def _are_codes(codes: Tensor, codes_per_unit: Tensor, x: Tensor) -> bool:
    """To the nearest; ties, which small whole numbers make, are any."""
    return bool(((codes - x * codes_per_unit).abs() < 0.5001).all())


@each_activation
def test_gradients_are_nearly_those_of_which_none_is_rounded(activation: Activation) -> None:
    x, *weights, upstream = drawn(0, (2, 20, 64), (96, 64), (96, 64), (64, 96), (2, 20, 64))
    factors = [factor.requires_grad_() for factor in (x, *weights)]
    y = gated_mlp(x, weights, activation, torch.float64, [int8_codes(weight) for weight in weights])
    found = torch.autograd.grad(y, factors, upstream)
    gate, up = (int8_linear(x, weight, torch.float64, int8_backward=False) for weight in weights[:2])
    plain = int8_linear(ACTIVATIONS[activation](gate) * up, weights[2], torch.float64, int8_backward=False)
    for one, exact in zip(found, torch.autograd.grad(plain, factors, upstream), strict=True):
        assert (one - exact).norm() < 0.02 * exact.norm()


def _on_device(width: int, *, bad: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """gate, up and a gradient, bfloat16: tokens of zeros, of ties both ways, and one with a bad number."""
    gate, up, gradient = drawn(0, *[(6, width)] * 3, dtype=torch.bfloat16)
    gate[0] = gradient[1] = 0
    gate[2:4], up[2:4], gradient[2:4] = 64, 0, 0  # of which both activations let all through
    ties = torch.tensor([127.0, 0.5, 1.5, -2.5]) / 64
    up[2, :4], gradient[3, :4] = ties, ties
    gate[4, 3] = bad
    return gate.to(DEVICE), up.to(DEVICE), gradient.to(DEVICE)


@each_activation
@pytest.mark.parametrize("width", [7, 48, 1100])
def test_kernels_are_their_twins(activation: Activation, width: int) -> None:
    from bitnet_trainer.quantization.kernels import gated

    gate, up, gradient = _on_device(width)
    codes, per_unit = (each.cpu() for each in gated.gated_codes(gate, up, *activation))
    expected, expected_per_unit = gated_codes(gate.cpu(), up.cpu(), activation)
    torch.testing.assert_close(per_unit, expected_per_unit, rtol=1e-5, atol=0)
    assert codes[2, :4].tolist() == [127, 0, 2, -2]
    _nearly(codes, expected)
    scales = torch.tensor(1.0, device=DEVICE), torch.tensor(0.25, device=DEVICE)
    given = expected_per_unit.to(DEVICE)
    found = gated.gated_gradients(gradient, gate, up, given, scales, *activation)
    to_gate, to_up, again, joint, joint_per_unit = (each.cpu() for each in found)
    twin = gated_gradients(
        gradient.cpu(),
        gate.cpu(),
        up.cpu(),
        expected_per_unit,
        (scales[0].cpu(), scales[1].cpu()),
        activation,
    )
    torch.testing.assert_close(to_gate, twin.to_gate, rtol=2**-7, atol=1e-5)
    torch.testing.assert_close(to_up, twin.to_up, rtol=2**-7, atol=1e-5)
    assert torch.equal(twin.gated, dequantized(expected, expected_per_unit, torch.bfloat16))
    assert again.dtype == torch.bfloat16
    away = (again.float() * expected_per_unit - expected).abs()  # the interpreter cuts off what does not fit
    assert away.max() <= 1
    assert away.mean() < 0.2
    torch.testing.assert_close(joint_per_unit, twin.codes_per_unit, rtol=1e-5, atol=0)
    assert joint[3, width : width + 4].tolist() == [127, 0, 2, -2]
    assert not joint[1].any()
    _nearly(joint, twin.codes)


def _nearly(codes: Tensor, expected: Tensor) -> None:
    """But for ties that roundings in between made or broke."""
    away = (codes.float() - expected.float()).abs()
    assert away.max() <= 1
    assert away.mean() < 0.01


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")  # the interpreter's
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_token_with_a_number_that_is_none_stays_without_one(bad: float) -> None:
    from bitnet_trainer.quantization.kernels import gated

    gate, up, gradient = _on_device(7, bad=bad)
    codes, per_unit = gated.gated_codes(gate, up, *SILU)
    one = torch.ones((), device=DEVICE)
    _, _, rounded, joint, joint_per_unit = gated.gated_gradients(
        gradient, gate, up, per_unit, (one, one), *SILU
    )
    for found in (
        dequantized(codes, per_unit, torch.float32),
        rounded,
        dequantized(joint, joint_per_unit, torch.float32),
    ):
        assert found.isfinite().all(dim=1).tolist() == [True] * 4 + [False, True]


def test_kernels_are_launched_by_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "bitnet_trainer.quantization.kernels.gated"
    kernels = pytest.importorskip(name)

    def both(gate: Tensor, up: Tensor) -> tuple[Tensor, ...]:
        _, per_unit = kernels.gated_codes(gate, up, *SILU)
        found: tuple[Tensor, ...] = kernels.gated_gradients(up, gate, up, per_unit, (unit, unit), *SILU)
        return found

    gate, codes, unit = torch.ones(2, 8), torch.ones(2, 16, dtype=torch.int8), torch.ones(())
    gives = gate, gate, gate, codes, unit
    assert launches_in_one_graph(monkeypatch, name, both, gate, gate, gives=gives) == 2


@pytest.fixture
def by_codes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """As on CUDA at lambda 1; what `gated_mlp` is called with."""
    monkeypatch.setattr(BitLinear, "_by_codes", lambda *_: True)
    calls: list[Any] = []

    def noted(*given: Any) -> Tensor:
        calls.append(given)
        return gated_mlp(*given)

    monkeypatch.setattr(models_gated, "gated_mlp", noted)
    return calls


def _mlp(architecture: str = "LlamaForCausalLM") -> GatedMLP:
    model = small_model(architecture)
    convert(model)
    mlp = model.model.layers[0].mlp
    assert isinstance(mlp, GatedMLP)
    return mlp


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GemmaForCausalLM"])
def test_as_one_function_an_mlp_computes_what_its_linears_do(architecture: str, by_codes: list[Any]) -> None:
    mlp = _mlp(architecture)
    x, upstream = drawn(0, (2, 5, 32), (2, 5, 32), dtype=torch.bfloat16)
    x.requires_grad_()
    factors = (x, *(linear.weight for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)))
    found = []
    for one in (True, False):
        mlp.up_proj.int8_backward = one
        y = mlp(x)
        found.append((y, *torch.autograd.grad(y, factors, upstream)))
    assert len(by_codes) == 1
    for one, other in zip(*found, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert (one - other).norm() < 0.03 * other.norm()


@pytest.mark.parametrize("which", ["gate_proj", "up_proj", "down_proj"])
@pytest.mark.parametrize("change", CHANGES)
def test_linears_that_do_more_are_called(change: str, which: str, by_codes: list[Any]) -> None:
    mlp = _mlp()
    linear = getattr(mlp, which)
    CHANGES[change](linear)
    assert not linear.is_int8_linear(torch.ones(1, 1))
    linear.forward = lambda x: called.append(x) or torch.zeros(*x.shape[:-1], linear.out_features)
    called: list[Tensor] = []
    mlp(torch.ones(3, 32, dtype=torch.bfloat16))
    assert len(called) == 1
    assert by_codes == []


def test_the_widest_are_called_too(by_codes: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, x = _mlp(), torch.ones(3, 32, dtype=torch.bfloat16)
    mlp(x)
    assert len(by_codes) == 1
    monkeypatch.setattr(models_gated, "WIDEST", 47)
    mlp(x)
    assert len(by_codes) == 1


def test_kept_codes_are_taken(by_codes: list[Any]) -> None:
    mlp = _mlp()
    for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        linear.kept = int8_codes(torch.zeros_like(linear.weight))
    assert not mlp(torch.ones(3, 32)).any()
    assert len(by_codes) == 1


def test_conversion_makes_no_other_of_what_has_a_norm_in_between() -> None:
    model = small_model("BitNetLlamaForCausalLM", hidden_act="silu")
    before = [type(layer.mlp) for layer in model.model.layers]
    convert(model)
    assert [type(layer.mlp) for layer in model.model.layers] == before


def test_a_copy_computes_with_its_own_weights(by_codes: list[Any]) -> None:
    model = small_model()
    names = list(model.state_dict())
    convert(model)
    assert list(model.state_dict()) == names
    mlp = model.model.layers[0].mlp
    x = torch.ones(1, 32)
    copied, expected = copy.deepcopy(model).model.layers[0].mlp, mlp(x)
    with torch.no_grad():
        copied.down_proj.weight.zero_()
    assert not copied(x).any()
    assert torch.equal(mlp(x), expected)
    assert len(by_codes) == 3
