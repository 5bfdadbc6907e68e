"""Packed export: stock transformers loads 2 bits a weight and has the trained model's logits, to rounding."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitNetForCausalLM
from transformers.integrations.bitnet import BitLinear as StockBitLinear
from transformers.integrations.bitnet import pack_weights

import families
from bitnet_crds.spec import Quantization
from bitnet_trainer.errors import BadInput
from bitnet_trainer.export.huggingface import PACKED_SCALE_CONVENTION, export_huggingface
from bitnet_trainer.export.stock import check_exportable
from bitnet_trainer.models.convert import convert
from bitnet_trainer.quantization.warmup import set_lambda
from families import TRANSFORMERS_ARCHITECTURES, loss_of, small_model
from measuring import perplexity

ALL, OUTPUT = Quantization(sub_ln="AllProjections"), Quantization(sub_ln="OutputProjections")
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def _no_compiler():
    """transformers compiles its quantisers; here they run as plain PyTorch, in the same order."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def exported(tokenizer, sequences, tmp_path):
    """Trains a model for three steps and exports it: the model, its report, the folder."""

    def make(architecture="LlamaForCausalLM", quantization=Quantization(), **changes):  # noqa: B008
        model = small_model(architecture, **changes)
        report = convert(model, quantization)
        model = families.trained(model, sequences)
        folder = export_huggingface(model, tokenizer, report, tmp_path / "export", packed=True)
        return model, report, folder

    return make


def inputs_of(model, names, sequences):
    """What each of the named layers is given."""
    seen, hooks = {}, []
    for name in names:

        def keep(_, given, name=name):
            seen[name] = given[0].detach()

        hooks.append(model.get_submodule(name).register_forward_pre_hook(keep))
    model(sequences)
    for hook in hooks:
        hook.remove()
    return seen


def assert_layers_agree(stock, model, layers, sequences):
    """Each layer gives the same for the same input. Not compared by logits: where two layers differ in their
    last bit an input of the next may be rounded to another of its 255 codes."""
    for name, given in inputs_of(model, layers, sequences).items():
        expected, found = model.get_submodule(name)(given), layers[name](given)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert loss_of(stock, sequences).item() == pytest.approx(loss_of(model, sequences).item(), rel=2e-3)


@pytest.mark.parametrize("architecture", TRANSFORMERS_ARCHITECTURES)
@pytest.mark.parametrize("quantization", [Quantization(), ALL], ids=["None", "AllProjections"])
def test_stock_transformers_computes_the_same(exported, sequences, architecture, quantization):
    model, report, folder = exported(architecture, quantization, rms_norm_eps=1e-4)
    auto = AutoModelForCausalLM if "CausalLM" in architecture else AutoModelForSequenceClassification
    stock = auto.from_pretrained(folder)
    assert type(stock) is type(model)
    layers = {name: module for name, module in stock.named_modules() if isinstance(module, StockBitLinear)}
    assert tuple(layers) == report.converted
    assert_layers_agree(stock, model, layers, sequences)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": False, "attention_bias": True}], ids=["tied", "untied, biases"]
)
def test_stock_transformers_gives_the_same_perplexity(exported, sequences, changes):
    model, _, folder = exported(**changes)
    stock = AutoModelForCausalLM.from_pretrained(folder)
    expected = perplexity(model, sequences).value
    assert perplexity(stock, sequences).value == pytest.approx(expected, rel=1e-3)
    set_lambda(model, 0.0)
    assert perplexity(model, sequences).value != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ("architecture", "quantization"), [("LlamaForCausalLM", OUTPUT), ("BitNetLlama", Quantization())]
)
def test_normed_outputs_are_stock_bitnet(exported, sequences, architecture, quantization):
    model, report, folder = exported(architecture, quantization)
    stock = AutoModelForCausalLM.from_pretrained(folder)
    assert type(stock) is BitNetForCausalLM
    layers = {name: stock.get_submodule(name) for name in report.converted}
    given = inputs_of(model, layers, sequences)
    for name in layers:
        # SubLN is a layer of its own here.
        norm = getattr(model.get_submodule(name), "rms_norm", None)
        x = given[name] if norm is None else norm(given[name])
        torch.testing.assert_close(layers[name](x), model.get_submodule(name)(given[name]))
    assert loss_of(stock, sequences).item() == pytest.approx(loss_of(model, sequences).item(), rel=2e-3)


def test_codes_and_scales_are_stored_as_transformers_packs_them(exported):
    model, report, folder = exported()
    tensors = load_file(folder / WEIGHTS)
    for name in report.converted:
        weight = model.get_submodule(name).weight.detach()
        scale = weight.double().abs().mean()
        codes = (weight.double() / scale).round().clamp(-1, 1)
        assert torch.equal(tensors[f"{name}.weight"], pack_weights(codes))
        assert tensors[f"{name}.weight_scale"].item() == pytest.approx(1 / scale.item(), rel=1e-6)
    assert "lm_head.weight" not in tensors
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (quantization["linear_class"], quantization["quantization_mode"]) == ("bitlinear", "offline")
    assert quantization["weight_scale_convention"] == PACKED_SCALE_CONVENTION


def test_it_is_smaller_than_the_latent_weights(exported, tokenizer, tmp_path):
    model, report, folder = exported(hidden_size=64, intermediate_size=256)
    latent = export_huggingface(model, tokenizer, report, tmp_path / "latent")
    converted = sum(model.get_submodule(name).weight.numel() for name in report.converted)

    def size(of: Path) -> int:
        return sum(tensor.nbytes for tensor in load_file(of / WEIGHTS).values())

    assert size(latent) - size(folder) == converted * 4 - converted // 4 - 4 * len(report.converted)


def test_rows_that_cannot_be_packed_are_refused_before_training():
    model = small_model(intermediate_size=50)
    why = r"mlp\.gate_proj has 50 rows, .* formats that do fit: HuggingFace, Packed"
    with pytest.raises(BadInput, match=why):
        check_exportable(model, Quantization(), ["HuggingFacePacked"])
    check_exportable(model, Quantization(), ["HuggingFace", "Packed"])
    with pytest.raises(BadInput, match="no Haar weights"):
        check_exportable(small_model(), Quantization(weights="Haar"), ["HuggingFacePacked"])
