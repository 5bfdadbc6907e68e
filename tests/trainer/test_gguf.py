"""GGUF: gguf-py gives back the trained weights, transformers the model; what does not fit is refused."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader, TokenType
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from bitnet_crds.spec import LowRankCorrection, Quantization
from bitnet_trainer.errors import BadInput, CheckpointError
from bitnet_trainer.export.gguf import GGUF_FORMATS, export_gguf
from bitnet_trainer.export.gguf_tokenizer import PRE_TOKENIZERS, pre_tokenizer_name
from bitnet_trainer.export.stock import check_exportable
from bitnet_trainer.models.convert import ConversionReport, convert
from bitnet_trainer.models.load import load_model
from bitnet_trainer.quantization.warmup import set_lambda
from byte_level import byte_level_tokenizer
from families import small_model
from gguf_models import LLAMA3_ROPE, MODELS, SIZES, trained

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HAAR = Quantization(weights="Haar")
SUB_LN = Quantization(sub_ln="OutputProjections")
LOW_RANK = Quantization(low_rank_correction=LowRankCorrection(ratio=0.1))


@pytest.fixture(scope="module")
def models():
    """Each model of `MODELS`, trained once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = trained(name)
        return made[name]

    return get


def write(given, folder, name, **changes):
    return export_gguf(given.model, given.tokenizer, given.report, folder / "model.gguf", name, **changes)


def tensors_of(file):
    """By name, dequantised by gguf-py."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in GGUFReader(file).tensors
    }


def codes_and_scale(weight):
    """The ternary codes and the scale, by the paper's formula, in float64."""
    scale = max(float(weight.double().abs().mean()), 1e-5)
    return np.clip(np.round(weight.double().numpy() / scale), -1, 1), scale


def interleaved(rows, head):
    """A head's rows in llama.cpp's order: 0, head/2, 1, head/2 + 1, ..."""
    order = [
        start + half * head // 2 + place
        for start in range(0, len(rows), head)
        for place in range(head // 2)
        for half in (0, 1)
    ]
    return rows[order]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("format", GGUF_FORMATS)
def test_gguf_py_gives_back_the_codes_and_their_scale(models, tmp_path, name, format):
    given = models(name)
    tensors = tensors_of(write(given, tmp_path, format))
    for layer in given.report.converted:
        _, _, index, part = layer.split(".", 3)
        weight = given.model.get_submodule(layer).weight.detach()
        codes, scale = codes_and_scale(weight)
        if "Llama" in type(given.model).__name__ and part in ("self_attn.q_proj", "self_attn.k_proj"):
            codes = interleaved(codes, given.model.config.head_dim)
        found = tensors[f"blk.{index}.{NAMES[part]}.weight"]
        stored = np.float32(np.float16(scale))
        assert np.array_equal(found, codes * stored)
        assert abs(stored - scale) <= scale / 2048
    weights = given.model.state_dict()
    assert np.array_equal(tensors["output_norm.weight"], weights["model.norm.weight"].numpy())
    embedding = weights["model.embed_tokens.weight"]
    assert np.array_equal(tensors["token_embd.weight"], embedding.half().float().numpy())
    assert ("output.weight" in tensors) == (not given.model.config.tie_word_embeddings)


@pytest.mark.parametrize("format", ["GGUF-TQ2_0", "GGUF-F16"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_transformers_computes_what_the_trained_weights_do(models, tmp_path, name, format):
    """It reads metadata and the order of rows back. Inputs are not quantised by it, and not in the twin.

    Of a Llama in GGUF it knows neither biases nor factors of a rope: those are for llama.cpp to show.
    """
    given = models(name)
    loaded = load_model(f"file://{write(given, tmp_path, format)}").model
    twin = small_model(MODELS[name][0], **{**SIZES, **MODELS[name][2]})
    weights = {key: tensor.clone() for key, tensor in given.model.state_dict().items()}
    for key in weights:
        if key.removesuffix(".weight") in given.report.converted:
            codes, scale = codes_and_scale(weights[key])
            weights[key] = torch.from_numpy(codes * scale)
        if weights[key].dim() == 2:
            weights[key] = weights[key].half().float()
    twin.load_state_dict(weights)
    expected = twin(given.tokens).logits
    torch.testing.assert_close(loaded(given.tokens).logits, expected, atol=1e-3, rtol=1e-3)
    set_lambda(given.model, 0.0)
    assert not torch.allclose(given.model(given.tokens).logits, expected, atol=0.1)
    set_lambda(given.model, 1.0)


def test_gathered_weights_may_be_given(models, tmp_path):
    given = models("llama")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in given.model.state_dict().items()}
    tensors = tensors_of(write(given, tmp_path, "GGUF-TQ1_0", state_dict=zeros))
    assert not any(tensor.any() for tensor in tensors.values())


@pytest.mark.parametrize(
    ("quantization", "changes", "same"),
    [
        (Quantization(), {}, "GGUF-TQ2_0"),
        (Quantization(), {"intermediate_size": 500}, "GGUF-F16"),
        (HAAR, {}, "GGUF-F16"),
    ],
    ids=["ternary", "rows of 500", "Haar"],
)
def test_gguf_alone_is_the_smallest_that_holds_the_model(tmp_path, quantization, changes, same):
    model = small_model("LlamaForCausalLM", **{**SIZES, **changes})
    given = replace(trained("llama"), model=model, report=convert(model, quantization))
    check_exportable(model, quantization, ["GGUF"], given.tokenizer)
    written = [write(given, tmp_path / name, name) for name in ("GGUF", same)]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_haar_weights_fit_f16(tmp_path):
    given = trained("qwen2", HAAR)
    check_exportable(given.model, HAAR, ["GGUF-F16"])
    tensors = tensors_of(write(given, tmp_path, "GGUF-F16"))
    effective = given.model.model.layers[1].mlp.down_proj.effective_weight().detach()
    assert np.array_equal(tensors["blk.1.ffn_down.weight"], effective.half().float().numpy())


def test_a_stretched_rope_is_its_factors(models, tmp_path):
    """The formula of Llama 3.1, frequency by frequency (transformers, modeling_rope_utils)."""
    factors = tensors_of(write(models("llama 3"), tmp_path, "GGUF-F16"))["rope_freqs.weight"]
    expected = []
    for place in range(0, 64, 2):
        wavelength = 2 * np.pi * LLAMA3_ROPE["rope_theta"] ** (place / 64)
        kept = (64 / wavelength - 1) / (4 - 1)
        expected.append(1 if wavelength < 64 / 4 else 8 if wavelength > 64 else 1 / ((1 - kept) / 8 + kept))
    np.testing.assert_allclose(factors, expected, rtol=1e-5)
    assert len({round(factor, 3) for factor in expected}) > 2


@pytest.mark.parametrize(
    ("architecture", "quantization", "changes", "format", "why"),
    [
        (
            "LlamaForCausalLM",
            Quantization(),
            {"hidden_size": 576, "head_dim": 64, "intermediate_size": 1536},
            "GGUF-TQ2_0",
            r"model\.layers\.0\.self_attn\.q_proj has rows of 576 weights, .*-TQ2_0's block of 256; "
            r"formats that do fit: GGUF-F16, HuggingFace, Packed",
        ),
        (
            "Qwen3ForCausalLM",
            Quantization(),
            {"intermediate_size": 500},
            "GGUF-TQ1_0",
            r"model\.layers\.0\.mlp\.down_proj has rows of 500",
        ),
        ("GemmaForCausalLM", Quantization(), {}, "GGUF-F16", "and not GemmaForCausalLM; remove GGUF-F16"),
        ("LlamaForCausalLM", SUB_LN, {}, "GGUF-F16", "no norm before a projection"),
        ("LlamaForCausalLM", LOW_RANK, {}, "GGUF-F16", r"remove GGUF-F16, or quantization\.lowRankCorr"),
        ("LlamaForCausalLM", HAAR, {}, "GGUF-TQ2_0", "Haar weights .* write GGUF-F16 in its place"),
        ("LlamaForCausalLM", Quantization(), {"hidden_act": "relu2"}, "GGUF-F16", "silu and not relu2"),
        ("Qwen3ForCausalLM", Quantization(), {"attention_bias": True}, "GGUF", r"Qwen3\w+ has no biases"),
        (
            "Qwen2ForCausalLM",
            Quantization(),
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
            "GGUF-F16",
            "no rope of type linear for Qwen2",
        ),
        (
            "Qwen2ForCausalLM",
            Quantization(),
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
            "GGUF-F16",
            "sliding-window attention",
        ),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused_before_training(
    architecture, quantization, changes, format, why
):
    model = small_model(architecture, **{**SIZES, **changes})
    with pytest.raises(BadInput, match=why):
        check_exportable(model, quantization, ["Packed", format])
    check_exportable(model, quantization, ["Packed"])


def test_a_refused_export_writes_nothing(models, tmp_path):
    given = models("llama")
    with pytest.raises(BadInput, match=r"LlamaForCausalLM has no model\.layers\.7"):
        export_gguf(
            given.model,
            given.tokenizer,
            ConversionReport(("model.layers.7.mlp.up_proj",), ()),
            tmp_path / "model.gguf",
            "GGUF-F16",
        )
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_is_filled_up_to_the_models_vocabulary(models, tmp_path):
    given = models("qwen2")
    fields = GGUFReader(write(given, tmp_path, "GGUF-F16")).fields
    tokens, types = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type"))
    assert (len(tokens), len(given.tokenizer)) == (330, 320)
    assert all(
        given.tokenizer.convert_tokens_to_ids(token) == index for index, token in enumerate(tokens[:320])
    )
    assert types[:3] == [TokenType.CONTROL, TokenType.CONTROL, TokenType.NORMAL]
    assert types[320:] == [TokenType.UNUSED] * 10
    assert fields["tokenizer.ggml.pre"].contents() == "qwen2"
    ids = [fields[f"tokenizer.ggml.{kind}_token_id"].contents() for kind in ("bos", "eos")]
    assert ids == [0, 1]
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_each_splitting_rule_is_known_by_what_it_does(name):
    assert pre_tokenizer_name(byte_level_tokenizer(PRE_TOKENIZERS[name])) == name


def test_tokenizers_that_gguf_cannot_name_are_refused(tokenizer, models, tmp_path):
    with pytest.raises(BadInput, match="of the kind WordLevel"):
        pre_tokenizer_name(tokenizer)
    strange = Sequence([Split(Regex(r"a+|[^a]+"), "isolated"), ByteLevel(use_regex=False)])
    with pytest.raises(BadInput, match="splits text in another way than gpt-2, smollm, qwen2, llama-bpe"):
        pre_tokenizer_name(byte_level_tokenizer(strange))
    given = models("llama")
    given.tokenizer.add_tokens([f"<{number}>" for number in range(11)])
    with pytest.raises(BadInput, match="has 331 tokens and the model embeds 330"):
        write(given, tmp_path, "GGUF-F16")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_file_is_replaced_whole_or_not_at_all(models, tmp_path, monkeypatch):
    given = models("qwen2")
    file = write(given, tmp_path, "GGUF-F16")
    before = file.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            write(given, tmp_path, "GGUF-TQ2_0")
    assert file.read_bytes() == before
    assert write(given, tmp_path, "GGUF-TQ2_0").stat().st_size < len(before)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    with pytest.raises(CheckpointError, match="cannot be written"):
        write(given, file, "GGUF-F16")
