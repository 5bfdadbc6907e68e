"""Loading models: from a folder, a GGUF file or the hub, and what is said when nothing good is there."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file

from bitnet_trainer import hub
from bitnet_trainer.errors import BadInput, ModelUnavailable
from bitnet_trainer.models import load
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.load import load_model, load_vocabulary, load_weights
from gcs_server import gcs_server, upload


@pytest.fixture
def folder(make_model, tokenizer, tmp_path):
    make_model("qwen3").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def gguf(make_model, tmp_path):
    """The tiny Llama as a GGUF file, whose q and k rows are interleaved as llama.cpp wants them."""
    model = make_model("llama")
    config = model.config
    path = tmp_path / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    words = ["<s>", "</s>", "w", "2", "w2"]
    writer.add_token_list([*words, *(f"w{number}" for number in range(len(words), config.vocab_size))])
    writer.add_token_types([1] * config.vocab_size)
    writer.add_token_merges(["w 2"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    writer.add_tensor("token_embd.weight", model.model.embed_tokens.weight.detach().numpy())
    writer.add_tensor("output_norm.weight", model.model.norm.weight.detach().numpy())
    for index, layer in enumerate(model.model.layers):
        for ours, theirs in names.items():
            weight = layer.get_submodule(ours).weight.detach()
            if theirs in ("attn_q", "attn_k"):
                weight = weight.view(-1, 2, config.head_dim // 2, config.hidden_size).transpose(1, 2)
                weight = weight.reshape(-1, config.hidden_size)
            writer.add_tensor(f"blk.{index}.{theirs}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_folder_gives_the_model_and_tokenizer(folder, make_model, sequences):
    loaded = load_model(f"file://{folder}")
    assert loaded.source == str(folder)
    assert loaded.tokenizer("w2 w5").input_ids == [2, 5]
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert not loaded.model.training
    assert torch.equal(loaded.model(sequences).logits, make_model("qwen3")(sequences).logits)


def test_a_folder_in_bfloat16_gives_float32_master_weights(make_model, tokenizer, tmp_path):
    make_model().bfloat16().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_model(f"file://{tmp_path}").model.dtype == torch.float32


def test_a_gguf_file_gives_an_ordinary_model(gguf, make_model, sequences, tmp_path):
    loaded = load_model(f"file://{gguf}")
    assert loaded.source == str(gguf)
    assert loaded.tokenizer("w2", add_special_tokens=False).input_ids == [2, 3]
    torch.testing.assert_close(loaded.model(sequences).logits, make_model("llama")(sequences).logits)
    assert len(convert(loaded.model).converted) == 14
    # Nothing of the GGUF stays behind that would make a saved copy look quantised.
    loaded.model.save_pretrained(tmp_path / "copy")
    assert "quantization_config" not in (tmp_path / "copy" / "config.json").read_text()


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setenv("BITNET_MODEL_CACHE", str(tmp_path / "cache"))
    with gcs_server() as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        yield "models"


def test_a_bucket_gives_what_was_put_there(bucket, folder, gguf, make_model, sequences):
    upload(bucket, {f"qwen/{file.name}": file.read_bytes() for file in folder.iterdir()})
    loaded = load_model(f"gs://{bucket}/qwen")
    assert loaded.source == f"gs://{bucket}/qwen"
    assert loaded.tokenizer("w2 w5").input_ids == [2, 5]
    assert torch.equal(loaded.model(sequences).logits, make_model("qwen3")(sequences).logits)

    upload(bucket, {"tiny.gguf": gguf.read_bytes()})
    here, there = load_weights(f"file://{gguf}"), load_weights(f"gs://{bucket}/tiny.gguf")
    assert torch.equal(there(sequences).logits, here(sequences).logits)

    upload(bucket, {"broken/config.json": b"{}"})
    with pytest.raises(
        ModelUnavailable, match=rf"model of gs://{bucket}/broken cannot be loaded.*files are whole"
    ):
        load_model(f"gs://{bucket}/broken")


def test_nothing_there(tmp_path):
    with pytest.raises(
        ModelUnavailable, match=r"there is no model at .*/absent .*; correct the path"
    ) as error:
        load_model(f"file://{tmp_path}/absent")
    assert not error.value.transient


@pytest.mark.parametrize(
    ("status", "transient"),
    [("404", False), ("401", False), ("429", True), ("503", True), ("broken off", True)],
)
def test_a_hub_that_does_not_answer_now_may_answer_later(monkeypatch, tmp_path, status, transient):
    """It is there when it is looked for, and has no file to give."""

    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self):
            if self.path == "/":
                self.send_response(200)
                self.end_headers()
            elif status.isdigit():
                self.send_error(int(status))
            else:
                self.connection.shutdown(2)

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, *_):
            pass

    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        with pytest.raises(ModelUnavailable) as error:
            load_model("hf://organisation/name")
        server.shutdown()
    assert error.value.transient is transient


def test_an_absent_claim_names_the_claim():
    with pytest.raises(ModelUnavailable, match=r"/mnt/pvc/models/smol .*claim models is mounted"):
        load_model("pvc://models/smol")


def test_the_hub_out_of_reach(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable) as error:
        load_model("hf://no-such-organisation/no-such-model", revision="v1")
    assert "no-such-organisation/no-such-model@v1" in str(error.value)
    assert "HF_TOKEN" in str(error.value)
    assert "out of reach" in str(error.value)
    assert not error.value.transient, "it is not to be asked"


def test_a_silent_hub_is_known_in_half_a_minute_and_then_not_asked_for_each_file(monkeypatch):
    assert sum(hub.PAUSES) + hub.TIMEOUT * (len(hub.PAUSES) + 1) < 30
    tries = []

    class Session:
        def head(self, url: str, timeout: float) -> None:
            tries.append((url, timeout))
            raise hub.httpx.ConnectTimeout("timed out")

    def from_pretrained(*_: object, **arguments: object) -> None:
        assert arguments["local_files_only"]
        raise OSError("not in the cache")

    monkeypatch.setattr(hub, "PAUSES", (0, 0))
    monkeypatch.setattr(hub, "get_session", Session)
    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(ModelUnavailable, match=r"is out of reach.*not in the cache") as error:
        load_model("hf://organisation/name")
    assert error.value.transient
    assert tries == [(load.constants.ENDPOINT, hub.TIMEOUT)] * 3


def test_an_unknown_scheme_names_the_known_ones():
    with pytest.raises(ModelUnavailable, match=r"'s3://bucket/model'.*hf://"):
        load_model("s3://bucket/model")


def test_a_file_that_is_no_gguf_by_name(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelUnavailable, match=r"must be a \.gguf file"):
        load_model(f"file://{tmp_path}/model.bin")


@pytest.mark.parametrize("content", [b"", b"hello", b"GGUF\x03\x00\x00\x00"])
def test_a_broken_gguf(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelUnavailable, match=r"model\.gguf cannot be loaded.*files are whole"):
        load_model(f"file://{tmp_path}/model.gguf")


def test_a_folder_without_config_names_the_gguf_in_it(tmp_path):
    with pytest.raises(ModelUnavailable, match=r"has no config\.json"):
        load_model(f"file://{tmp_path}")
    (tmp_path / "tiny.gguf").write_bytes(b"")
    with pytest.raises(ModelUnavailable, match=r"name the file itself: file://.*/tiny\.gguf"):
        load_model(f"file://{tmp_path}")


def test_half_a_safetensors_file(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelUnavailable, match="files are whole"):
        load_model(f"file://{folder}")


def test_a_broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Unheard"}}')
    with pytest.raises(ModelUnavailable, match=r"the tokenizer of .* cannot be loaded"):
        load_model(f"file://{folder}")


def test_a_vocabulary_that_is_there_and_cannot_be_read_is_not_taken_for_none(folder):
    address = f"file://{folder}"
    assert load_vocabulary(address)["w5"] == 5
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {')
    with pytest.raises(ModelUnavailable, match=r"the tokenizer of .* cannot be loaded"):
        load_vocabulary(address)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert load_vocabulary(address) is None


def test_missing_weights_are_not_replaced_by_random_ones(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=r"lacks 1 weights .*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(f"file://{folder}")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_folder_without_tokenizer(make_model, tmp_path, family):
    """transformers makes Qwen's up, of one token, and all text would be none."""
    make_model(family).save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match=r"the tokenizer of .* put tokenizer\.json"):
        load_model(f"file://{tmp_path}")
    # A teacher needs none.
    assert load_weights(f"file://{tmp_path}", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_missing_model_is_the_users_mistake():
    assert issubclass(ModelUnavailable, BadInput)
