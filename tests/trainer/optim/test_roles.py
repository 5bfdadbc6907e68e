"""Roles: every trained parameter has one, and what moves it follows."""

import pytest

from bitnet_crds.spec import LowRankCorrection, Quantization
from bitnet_trainer.models.convert import ARCHITECTURES as PROJECTIONS
from bitnet_trainer.models.convert import convert
from bitnet_trainer.optim import build_adamw, groups_table, set_learning_rate
from bitnet_trainer.optim.roles import parameters_by_role
from bitnet_trainer.optimizer import build_muonclip
from families import ARCHITECTURES, small_model


def muonclip(model):
    return build_muonclip(
        model, muon_learning_rate=0.02, adam_learning_rate=0.001, weight_decay=0.1, threshold=10, alpha=0.5
    )


def names_by_role(model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {role: [names[id(p)] for p in found] for role, found in parameters_by_role(model).items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_hidden_is_what_is_converted(architecture):
    model = small_model(architecture)
    convert(model, Quantization())
    found = names_by_role(model)
    hidden = found.pop("hidden")
    assert len(hidden) == 2 * len(PROJECTIONS[architecture])
    assert all(name.removesuffix(".weight").endswith(PROJECTIONS[architecture]) for name in hidden)
    assert [name.rsplit(".", 2)[-2] for name in found.pop("embedding")] == ["embed_tokens"]
    score = found.pop("head", [])
    assert score == (["score.weight"] if architecture.endswith("Classification") else [])
    assert found.keys() == {"vector"}
    assert all("norm" in name or name.endswith("bias") for name in found["vector"])


def test_a_head_of_its_own_is_a_head():
    found = names_by_role(small_model(tie_word_embeddings=False))
    assert found["head"] == ["lm_head.weight"]
    assert found["embedding"] == ["model.embed_tokens.weight"]


def test_frozen_matrices_have_no_role_and_corrections_are_no_hidden_matrices():
    model = small_model()
    convert(model, Quantization(low_rank_correction=LowRankCorrection(ratio=0.2)))
    found = names_by_role(model)
    assert found.keys() == {"low-rank"}
    assert len(found["low-rank"]) == 28


def test_the_table_says_what_moves_what():
    model = small_model()
    assert groups_table(muonclip(model)).splitlines() == [
        "hidden: 14 parameters, 15,360 numbers, Muon at 0.02, decay 0.1",
        "embedding: 1 parameters, 1,952 numbers, AdamW at 0.001, decay 0.1",
        "vector: 5 parameters, 160 numbers, AdamW at 0.001, decay 0",
    ]
    adamw = build_adamw(model, weight_decay=0.1, learning_rate=0.003)
    assert groups_table(adamw).count("AdamW at 0.003") == 3


def test_two_rates_follow_one_share():
    model = small_model()
    optimizer = muonclip(model)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    set_learning_rate(optimizer, 0.3)
    assert {group["role"]: group["lr"] for group in optimizer.param_groups} == {
        "hidden": 0.02 * 0.3,
        "embedding": 0.001 * 0.3,
        "vector": 0.001 * 0.3,
    }
