"""Checkpoints that either are whole or do not exist, and going on from them."""

from bitnet_trainer.checkpoint.resume import check_position, load, newest_sound, save
from bitnet_trainer.checkpoint.state import Position
from bitnet_trainer.checkpoint.store import CheckpointStore, Committed

__all__ = ["CheckpointStore", "Committed", "Position", "check_position", "load", "newest_sound", "save"]
