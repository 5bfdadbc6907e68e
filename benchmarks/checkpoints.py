"""How long training waits for a checkpoint, and how long writing one takes: AdamW's state, in a folder."""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.checkpoint.saver import Saver
from bitnet_trainer.checkpoint.state import Position, Training
from bitnet_trainer.optim import build_adamw, set_learning_rate

WIDTH = 2048
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


def training(layers: int, device: torch.device) -> Training:
    """Matrices of 4M weights each, which have taken a step."""
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))).to(device)
    optimizer = build_adamw(model, learning_rate=1.0, weight_decay=0.1)
    set_learning_rate(optimizer, 0.01)
    step(Training(model, optimizer), device)
    return Training(model, optimizer)


def step(trained: Training, device: torch.device) -> None:
    """One step of training."""
    trained.model(torch.randn(8, WIDTH, device=device)).square().mean().backward()
    trained.optimizer.step()
    trained.optimizer.zero_grad()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12, help="12 are 576 MiB of weights and moments")
    parser.add_argument("--checkpoints", type=int, default=6)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = dist.group.WORLD
    assert group is not None
    waited, took = [], []
    with tempfile.TemporaryDirectory() as folder:
        trained = training(options.layers, device)
        saver = Saver(LocalStore(Path(folder), keep=1), trained, group)
        for number in range(1, options.checkpoints + 1):
            step(trained, device)
            if device.type == "cuda":
                torch.cuda.synchronize()
            begun = time.perf_counter()
            saver.begin(replace(START, step=number))
            if device.type == "cuda":
                torch.cuda.synchronize()
            waited.append(time.perf_counter() - begun)
            saver.outcome()
            took.append(time.perf_counter() - begun)
        saver.close()
    dist.destroy_process_group()
    size = options.layers * WIDTH**2 * 12 / 2**20
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {size:.0f} MiB of weights and moments")
    print(f"training waits, the first time   {waited[0]:.3f} s")
    print(f"training waits, then             {statistics.median(waited[1:]):.3f} s (median)")
    print(f"committed after                  {statistics.median(took[1:]):.2f} s (median)")


if __name__ == "__main__":
    main()
