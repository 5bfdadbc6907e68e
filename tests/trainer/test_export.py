"""Export: stock transformers loads the folder and has the trained model's perplexity."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.bitnet import AutoBitLinear

from bitnet_trainer.errors import BadInput, CheckpointError
from bitnet_trainer.evaluate import perplexity
from bitnet_trainer.export.huggingface import SCALE_CONVENTION, export_huggingface
from bitnet_trainer.models.convert import ConversionReport, convert
from bitnet_trainer.models.load import load_model
from bitnet_trainer.quantization.warmup import set_lambda


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _no_compiler():
    """transformers compiles its quantisers; here they run as plain PyTorch, in the same order."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def trained(make_model, sequences):
    """Makes a converted model after three steps at lambda = 1, and what its conversion reported."""

    def make(family="llama", **changes):
        model = make_model(family, **changes)
        report = convert(model)
        set_lambda(model, 1.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(3):
            model(sequences, labels=sequences).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model, report

    return make


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False, "attention_bias": True}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
)
def test_stock_transformers_gives_the_same_perplexity(
    trained, tokenizer, sequences, tmp_path, family, changes
):
    model, report = trained(family, **changes)
    export_huggingface(model, tokenizer, report, tmp_path / "export")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    quantised = [name for name, module in stock.named_modules() if isinstance(module, AutoBitLinear)]
    assert tuple(quantised) == report.converted
    assert torch.equal(stock(sequences).logits, model(sequences).logits)
    assert perplexity(stock, sequences) == perplexity(model, sequences)
    set_lambda(model, 0.0)
    assert perplexity(stock, sequences).value != pytest.approx(perplexity(model, sequences).value, rel=1e-3)


def test_the_tokenizer_comes_along(trained, tokenizer, tmp_path):
    model, report = trained()
    folder = export_huggingface(model, tokenizer, report, tmp_path / "export")
    assert AutoTokenizer.from_pretrained(folder)("w3 w9").input_ids == [3, 9]


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
    for family in ("qwen3", "llama"):
        model, report = trained(family)
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
