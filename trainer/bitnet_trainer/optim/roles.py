"""What each parameter of a model is there for, which decides how an optimiser moves it."""

import re
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

Role = Literal["hidden", "embedding", "head", "low-rank", "vector"]
"""hidden: a matrix of a decoder layer. embedding, head: what tokens go in and out by, a classifier's `score`
among the heads; a tied one is an embedding. low-rank: U and V of a correction. vector: gains and biases."""

_IN_A_LAYER = re.compile(r"(^|\.)layers\.\d+\.")


def parameters_by_role(model: nn.Module) -> dict[Role, list[nn.Parameter]]:
    """Every parameter of `model` that is trained, once, in the model's order; no role is empty."""
    embeddings = {
        id(weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for weight in module.parameters(recurse=False)
    }
    found: dict[Role, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role = _role(name, parameter, is_embedding=id(parameter) in embeddings)
            found.setdefault(role, []).append(parameter)
    return found


def _role(name: str, parameter: nn.Parameter, *, is_embedding: bool) -> Role:
    if parameter.ndim < 2:
        return "vector"
    if is_embedding:
        return "embedding"
    if not _IN_A_LAYER.search(name):
        return "head"
    return "hidden" if parameter.ndim == 2 and name.endswith(".weight") else "low-rank"


def parameter_group(
    role: Role, parameters: Iterable[nn.Parameter], *, peak: float, weight_decay: float
) -> dict[str, Any]:
    """One group for an optimiser, at a learning rate of 0 until one is set.

    Vectors are not decayed. `peak` is the group's largest rate, of which `set_learning_rate` sets a share.
    """
    return {
        "params": list(parameters),
        "role": role,
        "peak": peak,
        "lr": 0.0,
        "weight_decay": 0.0 if role == "vector" else weight_decay,
    }


def groups_table(optimizer: torch.optim.Optimizer) -> str:
    """For a log: each group of parameters a line, with what moves it."""
    return "\n".join(
        f"{group['role']}: {len(group['params'])} parameters, {sum(p.numel() for p in group['params']):,} "
        f"numbers, {'AdamW' if 'betas' in group else 'Muon'} at {group['peak']:g}, "
        f"decay {group['weight_decay']:g}"
        for group in optimizer.param_groups
    )
