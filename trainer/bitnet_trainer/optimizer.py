"""Builds the optimiser that a run asks for; MuonClip has to see into the model's attention."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitnet_crds.optimizer import Optimizer
from bitnet_trainer.errors import BadInput
from bitnet_trainer.models.attention_logits import LargestLogits
from bitnet_trainer.optim import AttentionHeads, MuonClip, QKClip, build_adamw

_GAIN_OFFSETS = {"Qwen3RMSNorm": 0.0, "Gemma3RMSNorm": 1.0}
"""What a norm of queries and keys adds to its gain, by class."""


def build_optimizer(asked: Optimizer, model: PreTrainedModel) -> torch.optim.Optimizer:
    """The optimiser of a run's words, over what is trained in `model`, which is on its device already.

    Raises BadInput as `build_muonclip` does.
    """
    if asked.name == "AdamW":
        return build_adamw(model, learning_rate=asked.adam_learning_rate, weight_decay=asked.weight_decay)
    return build_muonclip(
        model,
        muon_learning_rate=asked.muon_rate,
        adam_learning_rate=asked.adam_learning_rate,
        weight_decay=asked.weight_decay,
        threshold=asked.largest_logit,
        alpha=asked.queries_exponent,
    )


def build_muonclip(
    model: PreTrainedModel,
    *,
    muon_learning_rate: float,
    adam_learning_rate: float,
    weight_decay: float,
    threshold: float,
    alpha: float,
) -> MuonClip:
    """MuonClip over what is trained in `model`, which is made to record its attention logits in training.

    Move the model to its device first. Arguments are those of `MuonClip` and `QKClip`. Raises BadInput where
    the logits of the model's attention cannot be had or bounded.
    """
    heads = attention_heads(model)
    return MuonClip(
        model,
        QKClip(heads, LargestLogits(model, threshold), threshold=threshold, alpha=alpha),
        muon_learning_rate=muon_learning_rate,
        adam_learning_rate=adam_learning_rate,
        weight_decay=weight_decay,
    )


def attention_heads(model: PreTrainedModel) -> tuple[AttentionHeads, ...]:
    """What queries and keys are made with, a layer each. Raises BadInput at a QK-norm that is not known."""
    base: Any = model.base_model
    config = model.config
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return tuple(_heads(layer.self_attn, key_heads) for layer in base.layers)


def _heads(attention: nn.Module, key_heads: int) -> AttentionHeads:
    norm: Any = getattr(attention, "q_norm", None)
    if norm is None:
        return AttentionHeads(_parameters(attention, "q_proj"), _parameters(attention, "k_proj"), key_heads)
    kind = type(norm).__name__
    if kind not in _GAIN_OFFSETS:
        raise BadInput(
            f"MuonClip bounds attention logits, and how {kind} norms queries is not known. "
            "Write `name: AdamW` in spec.optimizer."
        )
    return AttentionHeads(
        _parameters(attention, "q_norm"),
        _parameters(attention, "k_norm"),
        key_heads,
        normed=True,
        gain_offset=_GAIN_OFFSETS[kind],
    )


def _parameters(attention: nn.Module, name: str) -> tuple[Tensor, ...]:
    """Weight and, where there is one, bias of a part of it."""
    part = attention.get_submodule(name)
    return tuple(p for p in (part.weight, getattr(part, "bias", None)) if isinstance(p, Tensor))
