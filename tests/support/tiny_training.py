"""A model of a few numbers and its optimiser, for tests of what checkpoints hold."""

import torch
import torch.distributed as dist
from torch import nn

from bitnet_trainer.checkpoint.saver import Saver
from bitnet_trainer.checkpoint.state import Position, Training
from bitnet_trainer.checkpoint.store import CheckpointStore, Committed
from bitnet_trainer.optim import build_adamw, set_learning_rate

POSITION = Position(
    step=10,
    consumed=(50, 30),
    origin=(20, 10),
    mixture=(0.1, 0.7),
    skipped_steps=2,
    skipped_in_row=0,
    ledger_hash="a" * 16,
    data_fingerprint="b" * 64,
    world_size=1,
    balance={"maskedDiffusion": 1 / 3},
)


def tiny_training(seed: int) -> Training:
    """Tied embeddings, a norm, AdamW."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 7, bias=False))
    model[2].weight = model[0].weight
    optimizer = build_adamw(model, learning_rate=1.0, weight_decay=0.1)
    set_learning_rate(optimizer, 0.01)
    return Training(model, optimizer)


def train(training: Training, steps: int) -> None:
    """Takes steps on random tokens."""
    for _ in range(steps):
        training.optimizer.zero_grad()
        batch = torch.randint(0, 7, (3,))
        nn.functional.cross_entropy(training.model(batch), batch.roll(1)).backward()
        training.optimizer.step()


def saved(store: CheckpointStore, training: Training, group: dist.ProcessGroup) -> Committed:
    """Its checkpoint of POSITION, when that is committed. Raises as `Saver.outcome`."""
    saver = Saver(store, training, group)
    try:
        saver.begin(POSITION)
        return saver.outcome()
    finally:
        saver.close()


def everything(training: Training) -> dict[str, torch.Tensor]:
    """Weights and moments by name, copied."""
    found = {name: value.clone() for name, value in training.model.state_dict().items()}
    for number, state in training.optimizer.state_dict()["state"].items():
        found |= {f"{number}.{name}": value.clone() for name, value in state.items()}
    return found


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of what is not bit for bit the same."""
    assert one.keys() == other.keys()
    return [name for name, value in one.items() if not torch.equal(value, other[name])]
