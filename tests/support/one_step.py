"""One optimiser step of a small model, as tests count what it makes the host wait for."""

from collections.abc import Callable

import torch

from bitnet_trainer.batch import Rows
from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.objectives.manager import ObjectiveManager
from bitnet_trainer.optim import WeightAverage, build_adamw, set_learning_rate
from bitnet_trainer.quantization.warmup import set_lambda
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.step import StepInput, StepLosses, Stepper
from families import VOCABULARY, small_model
from optimizers import small_muonclip

MICRO_BATCHES = 2


def step_of(
    optimizer_name: str, architecture: str, device: torch.device, *, documents: bool = False
) -> Callable[[], StepLosses]:
    """What takes one step: two micro batches, gradients, the guard, the optimiser, the average.

    Rows are one text each, or hold several `documents`.
    """
    model = small_model(architecture).train()
    convert(model)
    model.to(device)
    if optimizer_name == "AdamW":
        optimizer: torch.optim.Optimizer = build_adamw(model, learning_rate=0.01, weight_decay=0.1)
    else:
        optimizer = small_muonclip(model, threshold=1.0)
    average = WeightAverage(model, 0.9)
    ranks = Ranks(0, 1, device, None)
    stepper = Stepper(
        LanguageModel(model), 2, optimizer, NonFiniteGuard(device), ranks, gradient_clipping=1.0
    )
    tokens = [torch.randint(2, VOCABULARY, (2, 12)) for _ in range(MICRO_BATCHES)]
    for each in tokens if documents else ():
        each[:, 4] = 1
    rows = [Rows.of_documents(each, end=1) if documents else Rows.of(each) for each in tokens]
    manager = ObjectiveManager({"crossEntropy": CrossEntropyObjective()})
    step = StepInput(rows, manager, {"crossEntropy": 44}, None)

    def take() -> StepLosses:
        set_lambda(model, 0.5)
        set_learning_rate(optimizer, 0.9)
        losses = stepper(step, {"crossEntropy": 1.0})
        average.update(1, stepper.guard.left_out)
        return losses

    return take
