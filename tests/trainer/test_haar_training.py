"""Haar weights in training: BitLinear's formula by codes, kept for a step, as kernels in one graph."""

from functools import partial
from typing import Any

import pytest
import torch
from functorch.compile import default_partition, make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.compile_utils import fx_graph_cse

from bitnet_trainer.quantization import bitlinear
from bitnet_trainer.quantization.bitlinear import BitLinear, QuantizationLambda
from bitnet_trainer.quantization.codes import quantize_activations
from bitnet_trainer.quantization.haar import haar_codes, haar_weight_quantization, haar_weights
from bitnet_trainer.quantization.haar_training import haar_linear
from bitnet_trainer.quantization.kept_codes import codes_kept
from functions_of_codes import drawn, launches_in_one_graph


def test_output_and_gradients_are_those_of_the_formula() -> None:
    x, weight, upstream = drawn(0, (2, 3, 8), (5, 8), (2, 3, 5))
    y = haar_linear(x.requires_grad_(), weight.requires_grad_(), torch.float64, kernel=False)
    y.backward(upstream)
    codes, per_unit = quantize_activations(x)
    inputs, quantized = codes / per_unit, haar_weight_quantization(weight)
    close = {"rtol": 1e-6, "atol": 1e-6}  # a token's scale is float32
    torch.testing.assert_close(y, inputs @ quantized.T, **close)
    torch.testing.assert_close(x.grad, upstream @ quantized, **close)
    torch.testing.assert_close(weight.grad, upstream.flatten(0, 1).T @ inputs.flatten(0, 1), **close)


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted only where there is no GPU")
def test_kernels_are_their_twins() -> None:
    """Of the same codes bit for bit; which codes they are is compared where the kernels are."""
    x, weight, upstream = drawn(0, (3, 12), (6, 12), (3, 6), dtype=torch.float32)
    made = []
    for kernel in (True, False):
        factors = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = haar_linear(*factors, torch.float32, haar_codes(weight), kernel=kernel)
        made.append((y, *torch.autograd.grad(y, factors, upstream)))
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))
    torch.testing.assert_close(haar_linear(x, weight, torch.float32), made[0][0])


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_computes_by_codes_what_it_computes_else(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, but for a bias, which is added to what was rounded: off by a place of bfloat16."""
    x, upstream = drawn(0, (2, 7, 16), (2, 7, 24), dtype=torch.bfloat16)
    layer = BitLinear(16, 24, bias=bias, scheme="Haar")
    monkeypatch.setattr(bitlinear, "haar_linear", partial(haar_linear, kernel=False))
    found = []
    for by_codes in (False, True):
        monkeypatch.setattr(BitLinear, "_by_codes", lambda _self, _x, by_codes=by_codes: by_codes)
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(inputs)
        found.append((y, *torch.autograd.grad(y, (inputs, layer.weight), upstream)))
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert bias or torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_codes_are_made_once_a_step_whatever_lambda_is(lam: float, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = BitLinear(8, 6, bias=False, lam=QuantizationLambda(lam), scheme="Haar")
    expected = layer.effective_weight()
    with codes_kept([nn.Sequential(layer)]):
        assert layer.kept is not None
        assert layer.kept.codes.dtype == torch.int8
        assert torch.equal(layer.effective_weight(), expected)
        with torch.no_grad():
            layer.weight += 1  # which nothing may do but a test
        kept = torch.lerp(layer.weight, haar_weights(*layer.kept, torch.float32), lam)
        torch.testing.assert_close(layer.effective_weight(), kept)
        layer(torch.eye(8)).sum().backward()
        assert torch.equal(layer.weight.grad, torch.ones(6, 8))
        monkeypatch.setattr(bitlinear, "haar_linear", lambda _x, _weight, _dtype, given: given.codes.float())
        monkeypatch.setattr(BitLinear, "_by_codes", lambda *_: True)
        assert torch.equal(layer(torch.zeros(1, 8)), layer.kept.codes.float())
    assert layer.kept is None


def test_kernels_are_launched_by_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two for codes, one for weights, and one in the backward pass."""
    x, weight = drawn(0, (3, 8), (6, 8), dtype=torch.float32)
    launched = launches_in_one_graph(
        monkeypatch,
        "bitnet_trainer.quantization.kernels.haar",
        haar_linear,
        x,
        weight.requires_grad_(),
        torch.float32,
        gives=[torch.zeros(3, 6)],
    )
    assert launched == 4


def test_the_backward_pass_does_not_ask_for_tokens_as_the_forward_pass_took_them() -> None:
    """A compiler would keep those, two bytes a value. Of codes it may make them again."""
    factors: list[tuple[object, ...]] = []

    def noted(joint: torch.fx.GraphModule, *inputs: Any, **named: Any) -> Any:
        alike = fx_graph_cse(joint.graph)
        factors.extend(node.args for node in alike.nodes if node.target is torch.ops.aten.mm.default)
        return default_partition(joint, *inputs, **named)

    x, weight = drawn(0, (4, 8), (6, 8), dtype=torch.float32)
    backend = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), partition_fn=noted)
    forward = partial(haar_linear, dtype=torch.bfloat16, kept=haar_codes(weight), kernel=False)
    compiled = torch.compile(forward, backend=backend, fullgraph=True)
    compiled(x.requires_grad_(), weight.requires_grad_()).sum().backward()
    (tokens, _), *backward = factors
    assert len(backward) == 2
    assert all(tokens not in both for both in backward)
    torch._dynamo.reset()
