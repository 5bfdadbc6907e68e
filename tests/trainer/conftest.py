"""Tiny models and a tokenizer for the trainer's tests: random weights, real architectures."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from google.api_core.retry import Retry
from huggingface_hub import HfFileSystem, constants
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from bitnet_trainer import cloud
from bitnet_trainer import hub as reach
from gcs_faults import Proxy, gcs_faults
from gcs_server import gcs_server
from hub_server import Hub, hub_server
from places import BucketPlace

VOCABULARY = 61
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}

MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_model() -> MakeModel:
    """Makes a causal LM of 2 layers, such as `make_model("qwen3", seed=1, tie_word_embeddings=False)`."""

    def make(family: str = "llama", seed: int = 0, **changes: object) -> PreTrainedModel:
        torch.manual_seed(seed)
        config = CONFIGS[family](**{**TINY, "tie_word_embeddings": True, **changes})
        # Away from zero, so that logits and perplexities differ visibly between models.
        config.initializer_range = 0.2
        return AutoModelForCausalLM.from_config(config).eval()

    return make


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Knows the words w2..w60."""
    words = ["<s>", "</s>", *(f"w{number}" for number in range(2, VOCABULARY))]
    bare = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<s>"))
    bare.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>", unk_token="<s>")


@pytest.fixture
def sequences() -> torch.Tensor:
    """(6, 12) random tokens."""
    return torch.randint(2, VOCABULARY, (6, 12), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def words(tmp_path: Path) -> Callable[[str, int], Path]:
    """Writes a .txt file of `count` words."""

    def write(name: str, count: int) -> Path:
        path = tmp_path / name
        draw = random.Random(name)
        path.write_text(" ".join(f"w{draw.randrange(2, 61)}" for _ in range(count)))
        return path

    return write


@pytest.fixture(scope="session")
def gcs() -> Iterator[str]:
    """The server, without faults; STORAGE_EMULATOR_HOST is set by whoever uses it."""
    with gcs_server() as url:
        yield url


@pytest.fixture
def proxy(gcs: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What a client speaks to in its place; what fails is tried again at once."""
    quickly = {"initial": 0.01, "maximum": 0.02, "timeout": 0.6}
    for name in ("RETRY", "UPLOAD_RETRY"):
        monkeypatch.setattr(cloud, name, Retry(predicate=cloud.RETRY._predicate, **quickly))
    with gcs_faults(gcs) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        yield proxy


@pytest.fixture
def bucket(proxy: Proxy, tmp_path: Path, request: pytest.FixtureRequest) -> BucketPlace:
    """A bucket of the test's own."""
    assert proxy
    name = "b" + "".join(letter if letter.isalnum() else "-" for letter in request.node.name.lower())
    return BucketPlace(f"{name[:50]}-{abs(hash(request.node.name)) % 10**6}-b", tmp_path / "scratch")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with nothing in it yet, and an empty cache."""
    import datasets  # takes seconds, and few tests need it

    with hub_server(tmp_path / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        files = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")
        monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "cache" / "modules"))
        monkeypatch.setattr(reach, "TIMEOUT", 2.0)
        monkeypatch.setattr(reach, "PAUSES", ())
        monkeypatch.delenv("HF_TOKEN", raising=False)
        HfFileSystem.clear_instance_cache()
        yield hub


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Takes away all that Google's client would find credentials by, here and in processes started after."""

    def take() -> None:
        for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
        # Read as the client is imported, which was long ago in this process.
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)

    return take
