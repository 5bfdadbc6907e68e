"""Checkpoints that either are whole or do not exist, and going on from them."""

from bitnet_trainer.checkpoint.address import open_store
from bitnet_trainer.checkpoint.bucket import BucketStore
from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.checkpoint.resume import check_position, load, newest_sound, read_position
from bitnet_trainer.checkpoint.saver import Saver, save
from bitnet_trainer.checkpoint.state import Position, Training
from bitnet_trainer.checkpoint.store import CheckpointStore, Committed

__all__ = [
    "BucketStore",
    "CheckpointStore",
    "Committed",
    "LocalStore",
    "Position",
    "Saver",
    "Training",
    "check_position",
    "load",
    "newest_sound",
    "open_store",
    "read_position",
    "save",
]
