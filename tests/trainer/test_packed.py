"""Packed models: bit-equal to the trained model at lambda = 1, small, whole or not there at all."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import families
from bitnet_crds.spec import LowRankCorrection, Quantization
from bitnet_trainer.errors import BadInput, CheckpointError, ModelUnavailable
from bitnet_trainer.models.convert import ConversionReport, convert
from bitnet_trainer.models.packed import load_packed, write_packed
from bitnet_trainer.quantization.codes import quantize_weights
from bitnet_trainer.quantization.packed_linear import PackedLinear
from bitnet_trainer.quantization.packing import unpack_ternary
from bitnet_trainer.quantization.warmup import set_lambda
from families import ARCHITECTURES, small_model

ABSMEAN = Quantization()
EVERYTHING = Quantization(
    weights="Haar", sub_ln="AllProjections", low_rank_correction=LowRankCorrection(ratio=0.1)
)
LOW_RANK_HAAR = EVERYTHING.model_copy(update={"sub_ln": "None"})
QUANTIZATIONS = {
    "AbsMean": ABSMEAN,
    "Haar": Quantization(weights="Haar"),
    "SubLN": Quantization(sub_ln="OutputProjections"),
    "LowRank": Quantization(low_rank_correction=LowRankCorrection(ratio=0.2, init="Kaiming")),
    "Everything": EVERYTHING,
}


@pytest.fixture
def trained(sequences):
    """Makes a converted model after three steps at lambda = 1, and what its conversion reported."""

    def make(architecture="LlamaForCausalLM", quantization=ABSMEAN, **changes):
        model = small_model(architecture, rms_norm_eps=1e-4, **changes)
        report = convert(model, quantization)
        return families.trained(model, sequences), report

    return make


@pytest.mark.parametrize("quantization", QUANTIZATIONS.values(), ids=QUANTIZATIONS.keys())
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, "attention_bias": True}])
def test_logits_are_bit_equal_for_any_quantization(trained, sequences, tmp_path, quantization, changes):
    model, report = trained(quantization=quantization, **changes)
    loaded, _ = load_packed(write_packed(model, report, tmp_path / "packed"))
    assert torch.equal(loaded(sequences).logits, model(sequences).logits)
    packed = [name for name, module in loaded.named_modules() if isinstance(module, PackedLinear)]
    assert tuple(packed) == report.converted
    set_lambda(model, 0.0)
    assert not torch.allclose(loaded(sequences).logits, model(sequences).logits, atol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_bit_equal_for_any_architecture(trained, sequences, tmp_path, architecture):
    quantization = LOW_RANK_HAAR if architecture.startswith("BitNetLlama") else EVERYTHING
    model, report = trained(architecture, quantization)
    loaded, _ = load_packed(write_packed(model, report, tmp_path / "packed"))
    assert type(loaded) is type(model)
    assert not loaded.training
    assert torch.equal(loaded(sequences).logits, model(sequences).logits)


def test_the_files_hold_codes_scales_and_everything_else_once(trained, tmp_path):
    model, report = trained(quantization=Quantization(sub_ln="OutputProjections"))
    folder = write_packed(model, report, tmp_path / "packed")
    tensors = load_file(folder / "model.safetensors")
    left = dict(model.named_parameters())
    for name in report.converted:
        weight = left.pop(f"{name}.weight")
        codes, scale = quantize_weights(weight)
        packed = tensors.pop(f"{name}.codes")
        assert packed.nbytes == -(-weight.shape[1] // 4) * weight.shape[0]
        assert torch.equal(unpack_ternary(packed, weight.shape[1]), codes.to(torch.int8))
        assert torch.equal(tensors.pop(f"{name}.scale"), scale)
    assert tensors.keys() == left.keys()
    assert all(torch.equal(tensors[name], parameter) for name, parameter in left.items())


def test_tied_heads_are_stored_once_and_tied_again(trained, tmp_path):
    model, report = trained()
    folder = write_packed(model, report, tmp_path / "packed")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    loaded, _ = load_packed(folder)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_the_description_says_how_to_read_it(trained, tmp_path):
    model, report = trained(quantization=EVERYTHING)
    folder = write_packed(model, report, tmp_path / "packed")
    description = json.loads((folder / "bitnet.json").read_text())
    assert description["version"] == 1
    assert description["architecture"] == "LlamaForCausalLM"
    assert description["quantization"]["weights"] == "Haar"
    assert description["quantization"]["subLN"] == "AllProjections"
    assert description["quantization"]["lowRankCorrection"] == {"ratio": 0.1, "init": "Residual"}
    assert "inverse Haar transform" in description["scaleConvention"]
    assert tuple(description["layers"]) == report.converted
    assert description["layers"]["model.layers.0.mlp.up_proj"] == {"normEpsilon": 1e-4, "rank": 3}


def test_the_tokenizer_comes_along_where_it_is_given(trained, tokenizer, tmp_path):
    model, report = trained()
    _, found = load_packed(write_packed(model, report, tmp_path / "with", tokenizer))
    assert found("w3 w9").input_ids == [3, 9]
    _, none = load_packed(write_packed(model, report, tmp_path / "without"))
    assert none is None


def test_gathered_weights_may_be_given(trained, sequences, tmp_path):
    model, report = trained(quantization=EVERYTHING)
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    expected = model(sequences).logits
    for parameter in model.parameters():
        parameter.data.zero_()
    folder = write_packed(model, report, tmp_path / "packed", state_dict=weights)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    loaded, _ = load_packed(folder)
    assert torch.equal(loaded(sequences).logits, expected)


def test_a_failed_export_leaves_what_was_there(trained, tokenizer, tmp_path, monkeypatch):
    model, report = trained()
    folder = write_packed(model, report, tmp_path / "packed", tokenizer)
    before = (folder / "model.safetensors").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    for parameter in model.parameters():
        parameter.data.zero_()
    with pytest.raises(CheckpointError, match="No space left on device"):
        write_packed(model, report, folder, tokenizer)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_the_report_of_another_model_is_refused(trained, tmp_path):
    model, _ = trained()
    with pytest.raises(BadInput, match=r"LlamaForCausalLM has no model\.layers\.7"):
        write_packed(model, ConversionReport(("model.layers.7.mlp.up_proj",), ()), tmp_path / "packed")


def test_what_is_no_packed_model_is_refused(trained, tmp_path):
    with pytest.raises(ModelUnavailable, match=r"absent is no packed model: bitnet\.json cannot be read"):
        load_packed(tmp_path / "absent")
    model, report = trained()
    folder = write_packed(model, report, tmp_path / "packed")
    (folder / "bitnet.json").write_text('{"version": 2}')
    with pytest.raises(ModelUnavailable, match="is no packed model"):
        load_packed(folder)


@pytest.mark.parametrize(
    "lost", ["model.norm.weight", "model.layers.1.mlp.up_proj.codes", "model.embed_tokens.weight"]
)
def test_a_missing_tensor_is_named(trained, tmp_path, lost):
    model, report = trained()
    folder = write_packed(model, report, tmp_path / "packed")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != lost}, folder / "model.safetensors"
    )
    with pytest.raises(ModelUnavailable, match=lost.replace(".", r"\.")):
        load_packed(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_file_is_a_sentence(trained, tmp_path, name):
    model, report = trained()
    folder = write_packed(model, report, tmp_path / "packed")
    (folder / name).write_bytes((folder / name).read_bytes()[:40])
    with pytest.raises(ModelUnavailable, match=r"cannot be loaded: .*; its files are not whole"):
        load_packed(folder)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda folder: edit(folder / "config.json", hidden_size="many"),
        lambda folder: edit(folder / "config.json", hidden_size=30),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: (folder / "bitnet.json").write_bytes(b"\xff\xfe"),
    ],
    ids=["type", "size", "tokenizer", "no text"],
)
def test_whatever_a_library_says_of_a_damaged_file_is_one_error(trained, tokenizer, tmp_path, break_it):
    model, report = trained()
    folder = write_packed(model, report, tmp_path / "packed", tokenizer)
    break_it(folder)
    with pytest.raises(ModelUnavailable, match=str(folder)):
        load_packed(folder)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_tensors_of_another_size_are_refused(trained, tmp_path):
    model, report = trained()
    folder = write_packed(model, report, tmp_path / "packed")
    other, other_report = trained(intermediate_size=64)
    wrong = write_packed(other, other_report, tmp_path / "other")
    (wrong / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        load_packed(folder)
