"""Export: stock transformers loads the folder and has the trained model's perplexity."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitNetForCausalLM,
)
from transformers.integrations.bitnet import AutoBitLinear

import families
from bitnet_crds.spec import LowRankCorrection, Quantization
from bitnet_trainer.errors import BadInput, CheckpointError
from bitnet_trainer.export.huggingface import SCALE_CONVENTION, export_huggingface
from bitnet_trainer.export.stock import check_exportable
from bitnet_trainer.models.convert import ConversionReport, convert
from bitnet_trainer.models.load import load_model
from bitnet_trainer.models.packed import write_packed
from bitnet_trainer.quantization.warmup import set_lambda
from families import TRANSFORMERS_ARCHITECTURES, small_model
from measuring import perplexity


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _no_compiler():
    """transformers compiles its quantisers; here they run as plain PyTorch, in the same order."""
    with torch.compiler.set_stance("force_eager"):
        yield


ALL, OUTPUT = Quantization(sub_ln="AllProjections"), Quantization(sub_ln="OutputProjections")
LOW_RANK = Quantization(low_rank_correction=LowRankCorrection(ratio=0.1))
HAAR = Quantization(weights="Haar")


@pytest.fixture
def trained(sequences):
    """Makes a converted model after three steps at lambda = 1, and what its conversion reported."""

    def make(architecture="LlamaForCausalLM", quantization=Quantization(), **changes):  # noqa: B008
        model = small_model(architecture, **changes)
        report = convert(model, quantization)
        return families.trained(model, sequences), report

    return make


def quantised_layers(model):
    return tuple(name for name, module in model.named_modules() if isinstance(module, AutoBitLinear))


@pytest.mark.parametrize("architecture", TRANSFORMERS_ARCHITECTURES)
@pytest.mark.parametrize("quantization", [Quantization(), ALL], ids=["None", "AllProjections"])
def test_stock_transformers_gives_the_same_logits(
    trained, tokenizer, sequences, tmp_path, architecture, quantization
):
    model, report = trained(architecture, quantization, rms_norm_eps=1e-4)
    export_huggingface(model, tokenizer, report, tmp_path / "export")
    auto = AutoModelForCausalLM if "CausalLM" in architecture else AutoModelForSequenceClassification
    stock = auto.from_pretrained(tmp_path / "export")
    assert type(stock) is type(model)
    assert quantised_layers(stock) == report.converted
    assert torch.equal(stock(sequences).logits, model(sequences).logits)
    set_lambda(model, 0.0)
    assert not torch.allclose(stock(sequences).logits, model(sequences).logits, atol=1e-3)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": False, "attention_bias": True}], ids=["tied", "untied, biases"]
)
def test_stock_transformers_gives_the_same_perplexity(trained, tokenizer, sequences, tmp_path, changes):
    model, report = trained(**changes)
    export_huggingface(model, tokenizer, report, tmp_path / "export")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert perplexity(stock, sequences) == perplexity(model, sequences)
    set_lambda(model, 0.0)
    assert perplexity(stock, sequences).value != pytest.approx(perplexity(model, sequences).value, rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_act": "relu2"},
        {"tie_word_embeddings": False, "attention_bias": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
    ],
    ids=["silu", "relu2", "untied, biases", "rope"],
)
@pytest.mark.parametrize("gathered", [False, True])
def test_a_llama_with_normed_outputs_is_stock_bitnet(
    trained, tokenizer, sequences, tmp_path, changes, gathered
):
    model, report = trained(quantization=OUTPUT, rms_norm_eps=1e-4, **changes)
    model.generation_config.max_new_tokens = 7
    expected = model(sequences).logits
    weights = None
    if gathered:
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        for parameter in model.parameters():
            parameter.data.zero_()
    export_huggingface(model, tokenizer, report, tmp_path / "export", weights)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert type(stock) is BitNetForCausalLM
    assert quantised_layers(stock) == report.converted
    assert torch.equal(stock(sequences).logits, expected)
    assert (stock.lm_head.weight is stock.model.embed_tokens.weight) == model.config.tie_word_embeddings
    assert stock.generation_config.max_new_tokens == 7
    padded = sequences.clone()
    padded[:, -3:] = 1
    mask = (padded != 1).long()
    if not gathered:
        found = stock(padded, attention_mask=mask).logits
        assert torch.equal(found, model(padded, attention_mask=mask).logits)


@pytest.mark.parametrize("changes", [{}, {"hidden_act": "silu", "tie_word_embeddings": False}])
def test_our_own_llama_is_stock_bitnet(trained, tokenizer, sequences, tmp_path, changes):
    model, report = trained("BitNetLlama", **changes)
    export_huggingface(model, tokenizer, report, tmp_path / "export")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert type(stock) is BitNetForCausalLM
    assert quantised_layers(stock) == report.converted
    torch.testing.assert_close(stock(sequences).logits, model(sequences).logits)


@pytest.mark.parametrize(
    ("architecture", "quantization", "changes", "why"),
    [
        ("LlamaForCausalLM", HAAR, {}, r"no Haar weights; write export\.formats: \[Packed\]"),
        (
            "LlamaForCausalLM",
            LOW_RANK,
            {},
            r"no low-rank correction; .* remove quantization\.",
        ),
        (
            "Qwen3ForCausalLM",
            OUTPUT,
            {},
            r"LlamaForCausalLM and not for Qwen3ForCausalLM; .*AllProj",
        ),
        ("LlamaForSequenceClassification", OUTPUT, {}, "not for LlamaForSequenceClassification"),
        ("BitNetLlamaForSequenceClassification", Quantization(), {}, "no class equal to BitNetLlamaForSeq"),
        ("LlamaForCausalLM", OUTPUT, {"mlp_bias": True}, "this LlamaForCausalLM has biases in its MLP"),
        ("LlamaForCausalLM", OUTPUT, {"head_dim": 16}, "4 heads of 16, which are not its hidden size of 32"),
    ],
)
def test_what_stock_transformers_cannot_express_is_refused_before_and_after_training(
    trained, tokenizer, tmp_path, architecture, quantization, changes, why
):
    with pytest.raises(BadInput, match=why):
        check_exportable(small_model(architecture, **changes), quantization, ("HuggingFace", "Packed"))
    check_exportable(small_model(architecture, **changes), quantization, ("Packed",))
    model, report = trained(architecture, quantization, **changes)
    with pytest.raises(BadInput, match=why):
        export_huggingface(model, tokenizer, report, tmp_path / "export")
    assert listing(tmp_path) == []


def test_our_own_llama_without_a_head_is_refused():
    with pytest.raises(BadInput, match="this BitNetLlama has no lm_head, unlike its BitNetForCausalLM"):
        check_exportable(small_model("BitNetLlama", has_lm_head=False), Quantization(), ("HuggingFace",))


@pytest.mark.parametrize("architecture", TRANSFORMERS_ARCHITECTURES)
def test_what_it_can_express_passes_before_conversion(architecture):
    for quantization in (Quantization(), ALL):
        check_exportable(small_model(architecture), quantization, ("HuggingFace", "Packed"))


def test_our_own_llama_passes_before_conversion():
    check_exportable(small_model("BitNetLlama"), Quantization(), ("HuggingFace", "Packed"))


def test_the_tokenizer_comes_along(trained, tokenizer, tmp_path):
    model, report = trained()
    folder = export_huggingface(model, tokenizer, report, tmp_path / "export")
    assert AutoTokenizer.from_pretrained(folder)("w3 w9").input_ids == [3, 9]


@pytest.mark.parametrize("padding", [None, "w2"])
def test_a_classifiers_tokenizer_pads_with_what_the_classifier_takes_for_padding(
    trained, tokenizer, tmp_path, padding
):
    """Else it pads with a token that the classifier reads as text, or, having none, refuses to pad at all."""
    tokenizer.pad_token = padding
    model, report = trained("LlamaForSequenceClassification")
    export_huggingface(model, tokenizer, report, tmp_path / "export")
    write_packed(model, report, tmp_path / "packed", tokenizer)
    beside = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert beside.pad_token_id == model.config.pad_token_id
    assert AutoTokenizer.from_pretrained(tmp_path / "packed").pad_token_id == model.config.pad_token_id
    assert tokenizer.pad_token == padding
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")
    together = stock(**beside(["w5 w7 w9", "w4"], padding=True, return_tensors="pt")).logits
    alone = stock(**beside(["w4"], return_tensors="pt")).logits
    torch.testing.assert_close(together[[1]], alone)


def test_the_config_says_what_the_weights_are(trained, tokenizer, tmp_path):
    model, report = trained()
    export_huggingface(model, tokenizer, report, tmp_path / "export")
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["dtype"] == "float32"
    quantization = config["quantization_config"]
    assert quantization["quant_method"] == "bitnet"
    assert quantization["linear_class"] == "autobitlinear"
    assert quantization["quantization_mode"] == "online"
    assert quantization["modules_to_not_convert"] == ["lm_head"]
    assert quantization["weight_scale_convention"] == SCALE_CONVENTION
    assert not hasattr(model.config, "quantization_config")


def test_gathered_weights_may_be_given(trained, tokenizer, sequences, tmp_path):
    model, report = trained()
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    expected = perplexity(model, sequences)
    for parameter in model.parameters():
        parameter.data.zero_()
    export_huggingface(model, tokenizer, report, tmp_path / "export", weights)
    assert perplexity(AutoModelForCausalLM.from_pretrained(tmp_path / "export"), sequences) == expected


def test_an_export_is_no_student_for_another_run(trained, tokenizer, tmp_path):
    model, report = trained()
    export_huggingface(model, tokenizer, report, tmp_path / "export")
    with pytest.raises(BadInput, match="is a AutoBitLinear, not a plain linear"):
        convert(load_model(f"file://{tmp_path}/export").model)


def test_an_earlier_export_is_replaced_and_nothing_is_left_beside_it(trained, tokenizer, sequences, tmp_path):
    for architecture in ("Qwen3ForCausalLM", "LlamaForCausalLM"):
        model, report = trained(architecture)
        export_huggingface(model, tokenizer, report, tmp_path / "export")
    assert listing(tmp_path) == ["export"]
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert perplexity(stock, sequences) == perplexity(model, sequences)


def test_a_failed_export_leaves_what_was_there(trained, tokenizer, tmp_path, monkeypatch):
    model, report = trained()
    export_huggingface(model, tokenizer, report, tmp_path / "export")
    before = (tmp_path / "export" / "model.safetensors").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    for parameter in model.parameters():
        parameter.data.zero_()
    with pytest.raises(CheckpointError, match="No space left on device"):
        export_huggingface(model, tokenizer, report, tmp_path / "export")
    assert (tmp_path / "export" / "model.safetensors").read_bytes() == before
    assert listing(tmp_path) == ["export"]


def test_a_parent_that_is_no_folder(trained, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    model, report = trained()
    with pytest.raises(CheckpointError, match=r"cannot be written to .*/file/export"):
        export_huggingface(model, tokenizer, report, tmp_path / "file" / "export")


def test_other_files_are_never_deleted(trained, tokenizer, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    model, report = trained()
    with pytest.raises(CheckpointError, match="holds files that are no export"):
        export_huggingface(model, tokenizer, report, tmp_path)
    assert listing(tmp_path) == ["thesis.tex"]


def test_the_report_of_another_model_is_refused(trained, tokenizer, tmp_path):
    model, _ = trained()
    with pytest.raises(BadInput, match=r"LlamaForCausalLM has no model\.layers\.7"):
        export_huggingface(
            model, tokenizer, ConversionReport(("model.layers.7.mlp.up_proj",), ()), tmp_path / "export"
        )
    assert listing(tmp_path) == []
