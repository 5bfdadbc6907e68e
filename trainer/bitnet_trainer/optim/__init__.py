"""Optimisers and the learning rate they are given at each step."""

from bitnet_trainer.optim.adamw import build_adamw
from bitnet_trainer.optim.average import WeightAverage
from bitnet_trainer.optim.clipping import clip_in_update
from bitnet_trainer.optim.muonclip import MuonClip
from bitnet_trainer.optim.qk_clip import AttentionHeads, QKClip
from bitnet_trainer.optim.roles import groups_table
from bitnet_trainer.optim.schedule import set_learning_rate
from bitnet_trainer.optim.shards import total_norm

__all__ = [
    "AttentionHeads",
    "MuonClip",
    "QKClip",
    "WeightAverage",
    "build_adamw",
    "clip_in_update",
    "groups_table",
    "set_learning_rate",
    "total_norm",
]
