"""Puts the ledger's learning rate into an optimiser. It has no schedule of its own."""

import torch


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every parameter group; call it each step with `Plan.learning_rate.at(step)`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
