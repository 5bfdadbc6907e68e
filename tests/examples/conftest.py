"""Trains an order in this process, as its only rank."""

import socket
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from bitnet_crds import Order
from bitnet_trainer.loop import Result, train
from bitnet_trainer.report import Reporter
from bitnet_trainer.stop import StopRequest


@pytest.fixture
def train_order(monkeypatch: pytest.MonkeyPatch) -> Callable[[Order, Reporter], Result]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = {"RANK": 0, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "WORLD_SIZE": 1, "MASTER_PORT": port}
    for name, value in {**ranks, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))

    def run(order: Order, reporter: Reporter) -> Result:
        torch.set_num_threads(1)
        try:
            return train(order, reporter, StopRequest())
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    return run
