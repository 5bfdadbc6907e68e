"""Puts the ledger's learning rate into an optimiser. It has no schedule of its own."""

import torch


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Sets each parameter group's rate to `share` of its own peak.

    Call it each step with `Plan.learning_rate.share_at(step)`: two kinds of groups with rates of their own
    follow one schedule.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
