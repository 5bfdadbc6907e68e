"""Faults of a pod, by its environment: Python imports this as it starts, wherever the folder is on its path.

NOT_FINITE: numbers of global batches, with commas, whose loss is not a number. SPIKES: those whose loss is
ten times what it was. FITTING: the most sequences of a pass that fit into memory with the teacher there; more
end in the error that an allocator raises. A run that asks for GPUs then has the processor for one.
STEP_SECONDS: how long a step takes at least, where a tiny model's would be over before anybody interrupts;
`0.2,100:0.5` is half a second from batch 100 on.
"""

import importlib.abc
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

NOT_FINITE = {int(batch) for batch in os.environ.get("NOT_FINITE", "").split(",") if batch}
SPIKES = {int(batch) for batch in os.environ.get("SPIKES", "").split(",") if batch}
FITTING = int(os.environ.get("FITTING", "0"))
STEP_SECONDS = [
    (int(batch or 0), float(seconds))
    for batch, _, seconds in (
        each.rpartition(":") for each in os.environ.get("STEP_SECONDS", "").split(",") if each
    )
]
"""From which batch on, and how long a step takes then at least; in order."""


def into_step(module: ModuleType) -> None:
    """Puts the faults into the trainer's steps."""
    stepper: Any = module.Stepper
    over_ranks = stepper._over_ranks

    def faulty_over_ranks(self: Any, parts: Any) -> Any:
        measured = over_ranks(self, parts)
        if stepper.batch in NOT_FINITE:
            measured.values[0] = float("nan")
        if stepper.batch in SPIKES:
            measured.values[0] *= 10
        return measured

    def limited(passes: Any) -> Any:
        def faulty(self: Any, step: Any, weights: Any) -> Any:
            import torch

            largest = max(rows.input_ids.shape[0] for rows in step.micro_batches)
            if FITTING and step.teacher is not None and largest > FITTING:
                raise torch.OutOfMemoryError(f"CUDA out of memory: {largest} sequences, and {FITTING} fit")
            return passes(self, step, weights)

        return faulty

    call = limited(stepper.__call__)

    def slow_call(self: Any, step: Any, weights: Any) -> Any:
        began = time.monotonic()
        losses = call(self, step, weights)
        least = [seconds for batch, seconds in STEP_SECONDS if (stepper.batch or 0) >= batch]
        time.sleep(max(0.0, began + (least[-1] if least else 0.0) - time.monotonic()))
        return losses

    stepper._over_ranks, stepper.batch = faulty_over_ranks, None
    stepper.__call__, stepper.rehearse = slow_call, limited(stepper.rehearse)


def into_ranks(module: ModuleType) -> None:
    """Has the processor stand for the GPU of each rank."""
    ranks: Any = module.Ranks
    join = ranks.join
    if FITTING:
        ranks.join = lambda _gpus: join(0)


def into_loop(module: ModuleType) -> None:
    """Tells the steps which global batch they are at."""
    loop: Any = module.TrainingLoop
    set_lambda = loop._set_lambda

    def telling(self: Any) -> Any:
        module.Stepper.batch = self.order.plan.batch_at(self.step)  # type: ignore[attr-defined]
        return set_lambda(self)

    loop._set_lambda = telling


class Faults(importlib.abc.MetaPathFinder):
    """Changes a module as it is imported."""

    changes: dict[str, Callable[[ModuleType], None]] = {
        "bitnet_trainer.ranks": into_ranks,
        "bitnet_trainer.step": into_step,
        "bitnet_trainer.loop": into_loop,
    }

    def find_spec(self, fullname: str, _path: Any, _target: Any = None) -> Any:
        """The module as it is found without this, with its change made after it was run."""
        change = self.changes.pop(fullname, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(fullname)
        loader: Any = spec.loader if spec is not None else None
        run = loader.exec_module

        def changed(module: ModuleType) -> None:
            run(module)
            change(module)

        loader.exec_module = changed
        return spec


if NOT_FINITE or SPIKES or FITTING or STEP_SECONDS:
    sys.meta_path.insert(0, Faults())
