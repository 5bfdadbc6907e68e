"""AdamW over a model's parameters, grouped by role."""

from typing import Any

import torch
from torch import nn

from bitnet_trainer.optim.roles import parameter_group, parameters_by_role

EPSILON = 1e-8
"""Added to the root of the second moment, before the first is divided by it."""


def build_adamw(model: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over everything in `model` that is trained.

    `learning_rate` is the peak, and nothing moves until `set_learning_rate` gives a share of it.
    """
    return fused_adamw(
        [
            parameter_group(role, parameters, peak=learning_rate, weight_decay=weight_decay)
            for role, parameters in parameters_by_role(model).items()
        ]
    )


def fused_adamw(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) with betas 0.9 and 0.95.

    The fused implementation is asked for because it alone can leave a step out on the device: where its
    `found_inf` is 1, neither weights nor moments nor step counts change.
    """
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=EPSILON, fused=True)
