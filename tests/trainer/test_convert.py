"""Conversion: what it converts and leaves, what it says of it, and what it refuses."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from bitnet_trainer.errors import BadInput
from bitnet_trainer.models.convert import ARCHITECTURES, convert
from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.warmup import set_lambda

FAMILIES = ["llama", "qwen2", "qwen3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_projection_is_converted_and_every_linear_named(make_model, family):
    model = make_model(family)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    report = convert(model)
    assert report.left == ("lm_head",)
    assert sorted((*report.converted, *report.left)) == sorted(linears)
    assert len(report.converted) == 2 * 7
    found = [name for name, module in model.named_modules() if isinstance(module, BitLinear)]
    assert tuple(found) == report.converted


@pytest.mark.parametrize("family", FAMILIES)
def test_at_lambda_0_the_model_is_the_original_bit_for_bit(make_model, family, sequences):
    original, model = make_model(family), make_model(family)
    convert(model)
    with torch.no_grad():
        expected = original(sequences).logits
        assert torch.equal(model(sequences).logits, expected)
        set_lambda(model, 1.0)
        assert not torch.allclose(model(sequences).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_model_trains(make_model, family, sequences):
    model = make_model(family)
    report = convert(model)
    set_lambda(model, 1.0)
    loss = model(sequences, labels=sequences).loss
    loss.backward()
    for name in report.converted:
        gradient = model.get_submodule(name).weight.grad
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    assert model(sequences, labels=sequences).loss < loss


@pytest.mark.parametrize("tied", [True, False])
def test_heads_stay_tied_or_untied_and_parameters_are_the_same_objects(make_model, tied):
    model = make_model(tie_word_embeddings=tied)
    before = dict(model.named_parameters())
    names = list(model.state_dict())
    convert(model)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert list(model.state_dict()) == names
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert type(model.lm_head) is nn.Linear


def test_one_lambda_for_the_whole_model(make_model):
    model = make_model()
    report = convert(model)
    assert len({id(model.get_submodule(name).lam) for name in report.converted}) == 1


def test_an_unknown_architecture_is_refused_and_the_known_ones_are_named():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=10))
    with pytest.raises(BadInput) as error:
        convert(model)
    assert "GPT2LMHeadModel" in str(error.value)
    assert all(name in str(error.value) for name in ARCHITECTURES)


def test_converting_nothing_is_an_error(make_model):
    model = make_model()
    model.model.layers = nn.ModuleList()
    with pytest.raises(BadInput, match=r"no linear .* was converted.* lm_head"):
        convert(model)


def test_a_second_conversion_is_refused(make_model):
    model = make_model()
    convert(model)
    with pytest.raises(BadInput, match=r"q_proj is a BitLinear, not a plain linear"):
        convert(model)
