"""The processes of a run, and what they settle with each other over the CPU."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from bitnet_trainer.errors import BadInput

Thing = TypeVar("Thing")

_PATIENCE = timedelta(hours=2)
"""How long a rank waits for another: rank 0 may be tokenising. The operator sees a stall sooner."""


@dataclass(frozen=True)
class Ranks:
    """This process among all of them."""

    rank: int
    world: int
    device: torch.device
    control: dist.ProcessGroup
    """Gloo, for CPU tensors. A rank that waits here learns at once that another died; with NCCL it hangs."""

    @classmethod
    def join(cls, gpus_per_worker: int) -> "Ranks":
        """Joins the process group that torchrun's environment describes.

        Each process takes a GPU of its own where there is one for all of them here. A run that asks for GPUs
        (`gpus_per_worker` above 0) never trains on the CPU instead: that raises BadInput.
        """
        here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if gpus_per_worker > 0 and gpus < here:
            raise BadInput(
                f"workers.gpusPerWorker is {gpus_per_worker}, which takes {here} GPUs here, and {gpus} can "
                "be seen. Train where they are, or set workers.gpusPerWorker to 0 to train on the CPU."
            )
        if gpus >= here:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
            dist.init_process_group("cpu:gloo,cuda:nccl", timeout=_PATIENCE, device_id=device)
        else:
            device = torch.device("cpu")
            dist.init_process_group("gloo", timeout=_PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size(), device, _gloo())

    def group_of_a_thread(self) -> dist.ProcessGroup:
        """Another group like `control`, for one thread alone: no two may share one. Every rank calls it."""
        return _gloo()

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which reports, commits and exports."""
        return self.rank == 0

    @property
    def turn(self) -> int:
        """When it is this rank's turn to make what the ranks of a machine, or all of them, then find made:
        0 for the first rank, 1 for the first one of each other machine, 2 for the rest."""
        return 0 if self.first else 1 if os.environ.get("LOCAL_RANK", "0") == "0" else 2

    @property
    def share_a_machine(self) -> bool:
        """Whether all of them are on one."""
        return os.environ.get("LOCAL_WORLD_SIZE") == str(self.world)

    def wait(self) -> None:
        """Returns when every rank has come here."""
        dist.barrier(self.control)

    def total(self, *counts: int) -> tuple[int, ...]:
        """Each count summed over the ranks."""
        totals = torch.tensor(counts, dtype=torch.int64)
        dist.all_reduce(totals, group=self.control)
        return tuple(totals.tolist())

    def total_of(self, value: float) -> float:
        """A number summed over the ranks, in float64."""
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return total.item()

    def from_first(self, thing: Thing | None) -> Thing:
        """Rank 0's `thing`, on every rank."""
        held = [thing]
        dist.broadcast_object_list(held, src=0, group=self.control)
        return held[0]  # type: ignore[return-value]


def _gloo() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    assert isinstance(group, dist.ProcessGroup)  # else this rank were outside the group
    return group
