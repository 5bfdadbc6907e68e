"""Which store a run's checkpoints are in, by the address that the run gave."""

from bitnet_crds.locations import parse_location
from bitnet_crds.protocol import Order
from bitnet_trainer.checkpoint.bucket import BucketStore
from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.checkpoint.moving import MovingStore
from bitnet_trainer.checkpoint.store import CheckpointStore


def open_store(order: Order, rank: int = 0) -> CheckpointStore:
    """The run's store, as its rank `rank` reaches it; nothing is asked of it yet."""
    location = parse_location(f"{order.address}/checkpoints")
    keep = order.spec.checkpoint.keep
    if location.bucket is None or location.object is None:
        return LocalStore(location.path, keep, rank)
    here = order.folder / "checkpoints"
    bucket = BucketStore(location.bucket, location.object, keep, here, rank)
    return MovingStore(bucket, LocalStore(here, keep, rank))
