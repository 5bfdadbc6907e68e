"""AdamW over a model's parameters, grouped by role."""

import torch
from torch import nn


def build_adamw(model: nn.Module, *, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) with betas 0.9 and 0.95 and a learning rate of 0 until one is set.

    Parameters of two dimensions or more are decayed; norms and biases are not. The fused implementation is
    asked for because it alone can leave a step out on the device: where its `found_inf` is 1, neither
    weights nor moments nor step counts change.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    return torch.optim.AdamW(used, lr=0.0, betas=(0.9, 0.95), fused=True)
