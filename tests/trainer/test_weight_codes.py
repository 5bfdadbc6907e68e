"""Codes of all weights at once: the kernels beside their twin, and where they are taken."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.quantization import kept_codes
from bitnet_trainer.quantization.bitlinear import BitLinear, QuantizationLambda
from bitnet_trainer.quantization.int8_training import Int8Codes, int8_codes
from bitnet_trainer.quantization.kept_codes import codes_kept
from bitnet_trainer.quantization.warmup import set_lambda
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.step import Stepper
from families import small_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _found(weights: list[Tensor]) -> list[Int8Codes]:
    from bitnet_trainer.quantization.kernels import weights as kernels

    there = [weight.to(DEVICE) for weight in weights]
    codes = [torch.empty_like(weight, dtype=torch.int8) for weight in there]
    scales = list(torch.empty(len(there), 4, device=DEVICE)[:, 0].unbind())
    kernels.int8_codes(there, codes, scales)
    return [Int8Codes(each.cpu(), scale.cpu()) for each, scale in zip(codes, scales, strict=True)]


@pytest.mark.parametrize("sizes", [[(3, 5), (7, 1)], [(16, 8), (64, 80), (4, 4)]], ids=["odd", "whole"])
def test_kernels_are_their_twin(sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    from bitnet_trainer.quantization.kernels import weights as kernels

    # Several blocks a weight, and several sums a block of sums.
    monkeypatch.setattr(kernels, "_BLOCK", 32)
    monkeypatch.setattr(kernels, "_SUMS", 2)
    torch.manual_seed(0)
    weights = [torch.randn(size) * 0.02 for size in sizes]
    for found, weight in zip(_found(weights), weights, strict=True):
        expected = int8_codes(weight)
        torch.testing.assert_close(found.scale, expected.scale, rtol=1e-6, atol=0)
        assert torch.equal(found.codes, expected.codes)


def test_ties_go_to_the_even_and_zeros_stay() -> None:
    ties, zeros = torch.tensor([[1.0, -3.0, 1.0, 3.0]]), torch.zeros(2, 8)  # of a mean of 2
    of_ties, of_zeros = _found([ties, zeros])
    assert of_ties.codes.tolist() == [[0, -1, 0, 1]]
    assert of_ties.scale == 2
    assert not of_zeros.codes.any()
    torch.testing.assert_close(of_zeros.scale, int8_codes(zeros).scale, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")  # the interpreter's
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_with_a_number_that_is_none_has_no_scale_either(bad: float) -> None:
    weights = [torch.ones(2, 8), torch.ones(2, 8)]
    weights[0][1, 3] = bad
    spoiled, fine = _found(weights)
    assert not (spoiled.codes * spoiled.scale).isfinite().all()
    assert torch.equal(fine.codes, torch.ones(2, 8, dtype=torch.int8))


def _layers() -> list[nn.Module]:
    """Of which kernels quantise the weights: as on CUDA, but where they are interpreted."""
    torch.manual_seed(0)
    shared = QuantizationLambda(1.0)
    shared.kernels = True
    return [nn.Sequential(BitLinear(8, 8, lam=shared).to(DEVICE)) for _ in range(2)]


CHANGES: dict[str, Callable[[BitLinear], object]] = {
    "Haar": lambda layer: setattr(layer, "scheme", "Haar"),
    "lambda": lambda layer: setattr(layer.lam, "whole", False),
    "no kernels": lambda layer: setattr(layer.lam, "kernels", False),
    "bfloat16": lambda layer: layer.bfloat16(),
    "in pieces": lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight.detach().T)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_kernels_do_not_take_is_left_to_others(change: str) -> None:
    layers = _layers()
    with codes_kept(layers, only_at_once=True):
        assert all(layer[0].kept is not None for layer in layers)
    CHANGES[change](layers[1][0])
    with codes_kept(layers, only_at_once=True):
        assert all(layer[0].kept is None for layer in layers)


@pytest.mark.parametrize("only_at_once", [False, True])
def test_without_a_layer_there_is_nothing_to_do(only_at_once: bool) -> None:
    with codes_kept([nn.Linear(8, 8)], only_at_once=only_at_once):
        pass


@pytest.mark.parametrize("in_place", [False, True])
def test_all_layers_have_theirs_from_one_call(in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_codes, "int8_codes", lambda _weight: pytest.fail("quantised by itself"))
    layers = _layers()
    places = []
    for _ in range(2):
        for layer in layers:
            nn.init.normal_(layer[0].weight)
        with codes_kept(layers, in_place=in_place):
            for layer in layers:
                expected = int8_codes(layer[0].weight)
                assert torch.equal(layer[0].kept.codes, expected.codes)
                torch.testing.assert_close(layer[0].kept.scale, expected.scale, rtol=1e-6, atol=0)
                assert layer[0].kept.scale.data_ptr() % 16 == 0
            places.append([each.data_ptr() for layer in layers for each in layer[0].kept])
        assert all(layer[0].kept is None for layer in layers)
        assert all((layer[0].place is not None) == in_place for layer in layers)
    if in_place:
        assert places[0] == places[1]


@pytest.mark.parametrize("kernels", [False, True])
def test_a_step_of_one_micro_batch_takes_them_where_there_are_kernels(kernels: bool) -> None:
    model = small_model()
    convert(model)
    cpu = torch.device("cpu")
    optimizer = torch.optim.SGD(model.parameters())
    stepper = Stepper(LanguageModel(model), 2, optimizer, NonFiniteGuard(cpu), Ranks(0, 1, cpu, None), 1.0)
    set_lambda(model, 1.0)
    parts = [part for part in model.modules() if isinstance(part, BitLinear)]
    parts[0].lam.kernels = kernels
    with stepper._codes_kept(1):
        assert {part.kept is not None for part in parts} == {kernels}
