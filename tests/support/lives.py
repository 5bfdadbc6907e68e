"""A run trained in processes of its own, one after the other, each of which may be killed in the middle."""

import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass

from bitnet_crds import Order
from bitnet_crds.protocol import Progress
from ports import free_port

_forked = multiprocessing.get_context("forkserver")
# What takes seconds is imported once, and every life is a fork of the process that did. It computes nothing.
_forked.set_forkserver_preload(["bitnet_trainer.run", "transformers.models.llama.modeling_llama"])


@dataclass(frozen=True)
class Kill:
    """SIGKILL to a process, when it has reported a step."""

    step: int
    later: float = 0.0
    """Seconds after that: into another step, or into the writing of a checkpoint."""


def live(order: Order, kill: Kill | None = None) -> int:
    """Trains in a new process, to its end or until it is killed: its exit code, -9 for a kill."""
    process = _forked.Process(target=_train, args=(order.model_dump_json(by_alias=True), kill))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _train(order_json: str, kill: Kill | None) -> None:
    import torch

    from bitnet_trainer.report import Reporter
    from bitnet_trainer.run import train
    from bitnet_trainer.stop import StopRequest

    class Doomed(Reporter):
        def update(self, **changes: object) -> None:
            super().update(**changes)
            if kill is not None and self.progress.step == kill.step:
                if kill.later == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                threading.Timer(kill.later, os.kill, (os.getpid(), signal.SIGKILL)).start()

    ranks = {"RANK": 0, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "WORLD_SIZE": 1, "MASTER_PORT": free_port()}
    os.environ.update({name: str(value) for name, value in ranks.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    order = Order.model_validate_json(order_json)
    begun = Progress(total_steps=order.plan.total_steps, phase=order.plan.phases[0].name)
    train(order, Doomed(begun), StopRequest())
