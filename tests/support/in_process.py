"""Training an order in this process, as its only rank."""

import pytest
import torch
import torch.distributed as dist

from bitnet_crds import Order
from bitnet_crds.protocol import Progress
from bitnet_trainer.report import Reporter
from bitnet_trainer.run import Result, train
from bitnet_trainer.stop import StopRequest
from ports import free_port


class StopsAt(Reporter):
    """A reporter that asks to stop after a step."""

    def __init__(self, order: Order, step: int | None) -> None:
        super().__init__(Progress(total_steps=order.plan.total_steps, phase=order.plan.phases[0].name))
        self.stop, self._step = StopRequest(), step

    def update(self, **changes: object) -> None:
        super().update(**changes)
        self.stop.requested |= self.progress.step == self._step


def tune_in_process(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tunes the teacher of the order's run, where it is to be."""
    if order.plan.tuning is not None:
        train_in_process(order.model_copy(update={"purpose": "TuneTeacher"}), monkeypatch)


def train_in_process(
    order: Order,
    monkeypatch: pytest.MonkeyPatch,
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> Result:
    """Trains to the end or until asked to stop, on a GPU where there is one."""
    ranks = {"RANK": 0, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "WORLD_SIZE": 1, "MASTER_PORT": free_port()}
    for name, value in {**ranks, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    torch.set_num_threads(1)
    begun = Progress(total_steps=order.plan.total_steps, phase=order.plan.phases[0].name)
    try:
        return train(order, reporter or Reporter(begun), stop or StopRequest())
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
