"""The trainer's own step, as benchmarks take it: cross-entropy alone, by AdamW, at lambda 1."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitnet_crds.optimizer import Optimizer
from bitnet_trainer.batch import Rows
from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.objectives.manager import ObjectiveManager
from bitnet_trainer.optim import set_learning_rate
from bitnet_trainer.optimizer import build_optimizer
from bitnet_trainer.quantization.warmup import set_lambda
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.setup import wrapped
from bitnet_trainer.step import StepInput, Stepper

WEIGHTS = {"crossEntropy": 1.0}
_MANAGER = ObjectiveManager({"crossEntropy": CrossEntropyObjective()})


def alone(device: torch.device) -> Ranks:
    """One rank, which asks nobody."""
    return Ranks(0, 1, device, None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TrainerStep:
    """A student in training, with all that a step of a run without a teacher does to it."""

    student: LanguageModel
    stepper: Stepper

    @classmethod
    def of(cls, student: LanguageModel, ranks: Ranks, *, rate: float) -> "TrainerStep":
        """Of a student that is converted, and sharded or not; `rate` is AdamW's peak."""
        optimizer = build_optimizer(Optimizer(adam_learning_rate=rate), student.model)
        guard = NonFiniteGuard(ranks.device)
        model, layers = wrapped(student, ranks), student.layers
        return cls(student, Stepper(model, layers, optimizer, guard, ranks, gradient_clipping=1.0))

    def asked(self, rows: Sequence[Rows]) -> StepInput:
        """A step of these micro batches, of which every rank has as many tokens."""
        counts = _MANAGER.count(rows, WEIGHTS)
        world = self.stepper.ranks.world
        return StepInput(rows, _MANAGER, {name: count * world for name, count in counts.items()}, None)

    def take(self, asked: StepInput, *, share: float = 1.0) -> Tensor:
        """Takes it at a share of the peak rate, and gives its loss, 0-dim on the device."""
        set_lambda(self.student, 1.0)
        set_learning_rate(self.stepper.optimizer, share)
        return self.stepper(asked, WEIGHTS).values[0]
