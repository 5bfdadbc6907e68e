"""Presets: their parameters as documented, exportable, and the same weights for the same seed."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from bitnet_crds.spec import Preset
from bitnet_trainer.errors import BadInput
from bitnet_trainer.models import presets
from bitnet_trainer.models.bitnet_llama import as_huggingface_bitnet
from bitnet_trainer.models.presets import PRESETS, build_preset

# Vocabulary, parameters, and parameters less embeddings.
COUNTS = {
    "BitNetLlama-1M": (2_048, 1_051_776, 789_632),
    "BitNetLlama-135M": (49_152, 134_578_368, 106_266_816),
    "BitNetLlama-350M": (49_152, 361_933_760, 314_747_840),
    "BitNetLlama-0.6B": (151_936, 596_186_112, 440_603_648),
    "BitNetLlama-1.7B": (151_936, 1_720_797_184, 1_409_632_256),
}


def test_each_name_of_the_spec_has_a_preset() -> None:
    assert tuple(PRESETS) == get_args(Preset) == tuple(COUNTS)


@pytest.mark.parametrize("preset", COUNTS)
def test_parameters_are_as_many_as_the_table_says(preset: str) -> None:
    vocabulary, parameters, inner = COUNTS[preset]
    with torch.device("meta"):
        model = build_preset(preset, vocabulary)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == parameters
    assert counted - model.model.embed_tokens.weight.numel() == inner
    assert as_huggingface_bitnet(model).config.num_attention_heads == PRESETS[preset].heads
    documented = Path(presets.__file__).read_text(encoding="utf-8")
    assert f"| {vocabulary:,} | {parameters:,} | {inner:,} |" in documented


def test_the_same_seed_gives_the_same_weights() -> None:
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(build_preset("BitNetLlama-1M", 100))
    weights = [model.model.layers[3].mlp.down_proj.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not models[0].training
    assert models[0].lm_head.weight is models[0].model.embed_tokens.weight


def test_new_weights_are_as_wide_as_said() -> None:
    torch.manual_seed(0)
    for name, parameter in build_preset("BitNetLlama-1M", 100).named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
        else:
            width = 0.02 / 8**0.5 if "o_proj" in name or "down_proj" in name else 0.02
            assert parameter.std().item() == pytest.approx(width, rel=0.03), name


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(BadInput, match=r"no preset 'BitNetLlama-2M'; write one of BitNetLlama-1M"):
        build_preset("BitNetLlama-2M", 100)
