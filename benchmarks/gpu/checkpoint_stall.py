"""How long training waits for asynchronous checkpoints: weights and AdamW's moments, beside real steps."""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from cases import Trained, Workload, ours
from ceilings import seconds_each
from shapes import SHAPES, Shape
from step import DEVICE, heading
from timing import free, held
from torch import Tensor

from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.checkpoint.saver import Saver
from bitnet_trainer.checkpoint.state import Position, Training
from bitnet_trainer.optim import build_adamw

GOAL = 0.01
"""Of the time between two checkpoints, at most."""
START = Position(
    step=0,
    consumed=(0,),
    origin=(0,),
    mixture=(1.0,),
    skipped_steps=0,
    skipped_in_row=0,
    ledger_hash="0" * 16,
    data_fingerprint="0" * 64,
    world_size=1,
)


def by_trainer(name: str, shape: Shape, batch: int, sequence: int, *, compiled: bool) -> tuple[str, Trained]:
    """The trainer's own steps, and what they are called."""
    tokens = torch.randint(shape.vocabulary, (batch, sequence + 1))
    trained = ours(Workload(name, shape, tokens, DEVICE), compiled=compiled)
    return "the trainer's steps", replace(trained, model=trained.model.get_submodule("model"))


def by_products(shape: Shape, seconds: float) -> tuple[str, Trained]:
    """Steps of a given length that compute nothing of use, so that the host has next to nothing to do; and
    what they are called."""
    model = shape.build(DEVICE)
    optimizer = build_adamw(model, learning_rate=1e-4, weight_decay=0.1)
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    side = 8192 if DEVICE.type == "cuda" else 256
    a = torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16)
    goal = torch.empty_like(a)

    def once() -> None:
        torch.mm(a, a, out=goal)

    count = max(1, round(seconds / seconds_each([once] * 10, DEVICE)))

    def take() -> Tensor:
        for _ in range(count):
            once()
        return goal

    return f"{count} products a step", Trained(model, optimizer, take)


@dataclass(frozen=True)
class Found:
    """What one checkpoint cost, in seconds."""

    step: float
    """Of a step while none is written."""
    copied: float
    """Training stands still, while the state is copied."""
    beside: int
    """Steps taken while it was written."""
    slower: float
    """What those took longer than such steps do else."""
    written: float
    """From its begin to its commit."""

    @property
    def stall(self) -> float:
        """What training lost in all. It is negative by as much as steps differ, where nothing was lost."""
        return self.copied + self.slower


def finished() -> float:
    """The time, once the device has done all."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def steps(trained: Trained, count: int) -> float:
    """Seconds of so many steps; the host waits for the device at the end alone."""
    begun = finished()
    for _ in range(count):
        trained.take()
    return finished() - begun


def checkpoint(trained: Trained, saver: Saver, number: int, count: int) -> Found:
    """Writes one while training goes on, with `count` steps before it and after it to compare with."""
    before = steps(trained, count)
    begun = finished()
    saver.begin(replace(START, step=number))
    copied = finished()
    beside = 0
    while not saver.settled:
        trained.take()
        beside += 1
    took = finished() - copied
    saver.outcome()
    step = (before + steps(trained, count)) / (2 * count)
    assert saver.seconds is not None
    return Found(step, copied - begun, beside, took - beside * step, saver.seconds)


def table(found: list[Found], every: int) -> str:
    """Markdown. The first checkpoint also sets memory aside, and is not in the last line."""
    lines = [
        "| checkpoint | a step | copied in | steps beside it | these longer by | committed after | lost of "
        f"{every} steps |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for number, each in enumerate(found):
        lines.append(
            f"| {'the first' if number == 0 else number + 1} | {each.step * 1e3:.1f} ms "
            f"| {each.copied * 1e3:.0f} ms | {each.beside} | {each.slower * 1e3:+.0f} ms "
            f"| {each.written:.1f} s | {each.stall / (every * each.step):.2%} |"
        )
    share = statistics.median(each.stall / (every * each.step) for each in found[1:])
    kept = "met" if share <= GOAL else "missed"
    return "\n".join(
        [*lines, "", f"Lost, median after the first: {share:.2%}; the goal of {GOAL:.0%} is {kept}."]
    )


def run(name: str, trained: Trained, options: argparse.Namespace) -> None:
    """Measures one kind of steps, and prints it."""
    steps(trained, 3)
    folder = options.folder or tempfile.gettempdir()
    print(f"\n## {name}; {held(trained) / 2**30:.2f} GiB a checkpoint, in {folder}\n", flush=True)
    group = dist.group.WORLD
    assert group is not None
    with tempfile.TemporaryDirectory(dir=folder) as place:
        saver = Saver(LocalStore(Path(place), keep=1), Training(trained.model, trained.optimizer), group)
        found = [
            checkpoint(trained, saver, number, options.steps) for number in range(1, options.checkpoints + 1)
        ]
        saver.close()
    print(table(found, options.every), flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="0.6B")
    parser.add_argument("--tokens", nargs=2, type=int, default=(8, 2048), metavar=("ROWS", "LENGTH"))
    parser.add_argument("--kinds", nargs="+", choices=("trainer", "products"), default=["trainer"])
    parser.add_argument("--compiled", action="store_true", help="the trainer's layers")
    parser.add_argument("--step-ms", type=float, default=150.0, help="length of a step of products")
    parser.add_argument("--every", type=int, default=200, help="steps between two checkpoints")
    parser.add_argument("--checkpoints", type=int, default=3, help="at least 2")
    parser.add_argument("--steps", type=int, default=8, help="before and after each, to compare with")
    parser.add_argument(
        "--folder", help="where they are written; the system's for temporary files if not said"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    print(heading(), flush=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    shape = SHAPES[options.shape]
    for kind in options.kinds:
        try:
            if kind == "trainer":
                name, trained = by_trainer(options.shape, shape, *options.tokens, compiled=options.compiled)
            else:
                name, trained = by_products(shape, options.step_ms / 1e3)
            run(name, trained, options)
            del trained
        except Exception as error:  # noqa: BLE001
            first = (str(error).splitlines() or [""])[0]
            print(f"\n{kind}: not measured: {type(error).__name__}: {first[:160]}", flush=True)
        free()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
