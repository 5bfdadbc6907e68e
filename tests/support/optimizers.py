"""Optimisers as tests make them, of small models and of a few tensors, and all that a step of one changes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bitnet_trainer.optim import MuonClip
from bitnet_trainer.optimizer import build_muonclip


def small_muonclip(model: PreTrainedModel, threshold: float = 100, alpha: float = 0.5) -> MuonClip:
    """MuonClip at the rates of a small model; at that threshold it clips none of its heads."""
    return build_muonclip(
        model,
        muon_learning_rate=0.02,
        adam_learning_rate=0.01,
        weight_decay=0.1,
        threshold=threshold,
        alpha=alpha,
    )


def groups_of(
    sizes: Sequence[tuple[int, ...]], device: torch.device, dtype: torch.dtype = torch.float32
) -> list[dict[str, Any]]:
    """Two of random weights, at rates and decays of their own; in one every length is a multiple of 4."""
    generator = torch.Generator(device).manual_seed(0)
    weights = [torch.randn(size, generator=generator, device=device).to(dtype) for size in sizes]
    return [
        {"params": [each for each in weights if each.numel() % 4 == 0], "lr": 0.01, "weight_decay": 0.1},
        {"params": [each for each in weights if each.numel() % 4], "lr": 0.003, "weight_decay": 0.0},
    ]


def parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Of all its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def everything(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Weights, then moments and step counts."""
    states = (optimizer.state[weight] for weight in parameters(optimizer))
    return [*parameters(optimizer), *(value for state in states for value in state.values())]
