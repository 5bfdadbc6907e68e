"""Optimisers and the learning rate they are given at each step."""

from bitnet_trainer.optim.adamw import build_adamw
from bitnet_trainer.optim.schedule import set_learning_rate

__all__ = ["build_adamw", "set_learning_rate"]
