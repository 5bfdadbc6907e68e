"""Haar weights in training on CUDA: the kernels are called, and layers compute what torch's formula does."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from bitnet_crds.spec import Quantization
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.quantization.bitlinear import BitLinear, QuantizationLambda
from bitnet_trainer.quantization.haar import haar_codes
from bitnet_trainer.quantization.kept_codes import codes_kept
from bitnet_trainer.quantization.warmup import set_lambda
from bitnet_trainer.step import autocast
from families import VOCABULARY, small_model

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")


@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_a_layer_by_kernels_is_the_layer_by_torch(lam: float) -> None:
    """Of the same codes: its weight bit for bit, its output to a place of bfloat16."""
    from bitnet_trainer.quantization.kernels import haar

    torch.manual_seed(0)
    layer = BitLinear(640, 256, bias=False, device=CUDA, lam=QuantizationLambda().to(CUDA), scheme="Haar")
    x = torch.randn(64, 640, device=CUDA)
    layer.kept = haar_codes(layer.weight, kernel=False)
    found: list[tuple[Tensor, ...]] = []
    for kernels in (True, False):
        layer.lam.set(lam)
        layer.lam.kernels &= kernels
        layer.weight.grad = None
        with patch.object(haar, "haar_weights", wraps=haar.haar_weights) as weights, autocast(CUDA):
            y = layer(x)
            effective = layer.effective_weight()
        y.float().square().sum().backward()
        assert weights.called == kernels
        found.append((y, effective, layer.weight.grad))
    assert torch.equal(found[0][1], found[1][1])
    for one, other in zip(*found, strict=True):
        assert _apart(one, other) < 2**-7


def test_codes_are_the_kernels_in_a_step() -> None:
    torch.manual_seed(0)
    layer = BitLinear(640, 256, device=CUDA, lam=QuantizationLambda().to(CUDA), scheme="Haar")
    layer.lam.set(0.5)
    with codes_kept([layer]):
        expected = haar_codes(layer.weight, kernel=True)
        torch.testing.assert_close(layer.kept.scales, expected.scales, rtol=2e-6, atol=0)
        assert (layer.kept.codes != expected.codes).float().mean() < 1e-4


@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_compiled_layers_compute_as_others(lam: float) -> None:
    torch._dynamo.reset()
    model = small_model().train()
    convert(model, Quantization(weights="Haar"))
    student = LanguageModel(model.to(CUDA))
    set_lambda(student, lam)
    ids = torch.arange(2, VOCABULARY, device=CUDA)[None]
    found = []
    for compiled in (False, True):
        if compiled:
            student.compile_layers()
        student.zero_grad()
        for kept in (False, True):
            with codes_kept(student.decoder_layers if kept else ()), autocast(CUDA):
                hidden = student(ids).hidden
            hidden.float().square().mean().backward()
        gradients = [weight.grad.clone() for weight in student.parameters() if weight.grad is not None]
        found.append((hidden.detach(), torch.cat([each.flatten() for each in gradients])))
    for one, other in zip(*found, strict=True):
        assert _apart(one, other) < 0.1


def _apart(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()
