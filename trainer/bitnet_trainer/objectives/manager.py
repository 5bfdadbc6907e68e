"""The manager of objectives: runs those that have weight, and adds them up.

The weights come from the ledger at each step; an objective of weight 0, or one that the phase does not
name, is never called, so nothing of its preparation can touch the others.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from bitnet_crds.spec import Objectives
from bitnet_trainer.errors import BadInput
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.teacher_logits import TeacherLogitsObjective
from bitnet_trainer.objectives.token_loss import TokenLoss

Objective = Callable[[MicroBatch], TokenLoss]


@dataclass(frozen=True)
class ObjectiveLoss:
    """One objective's part in a loss, for the log. Tensors stay on the device: reading them is a sync."""

    name: str
    weight: float
    loss: TokenLoss
    """Without gradient."""

    @property
    def raw(self) -> Tensor:
        """Mean loss a token, unweighted, 0-dim, nats."""
        return self.loss.mean

    @property
    def weighted(self) -> Tensor:
        """weight * raw, 0-dim."""
        return self.weight * self.loss.mean


@dataclass(frozen=True)
class WeightedLoss:
    """What is minimised, and its parts."""

    total: Tensor
    """`sum of weight * loss.total / normaliser`, 0-dim; call backward on it."""
    parts: tuple[ObjectiveLoss, ...]
    """The objectives that ran, in the order of the weights."""


def objectives_of(spec: Objectives) -> dict[str, Objective]:
    """The objectives that a phase of a run names, by their names in YAML."""
    objectives: dict[str, Objective] = {}
    if spec.cross_entropy is not None:
        objectives["crossEntropy"] = CrossEntropyObjective()
    if spec.teacher_logits is not None:
        objectives["teacherLogits"] = TeacherLogitsObjective(spec.teacher_logits.temperature)
    return objectives


class ObjectiveManager:
    """Computes `total = sum of weight * loss` over a phase's objectives. Stateless between calls."""

    def __init__(self, objectives: Mapping[str, Objective]) -> None:
        """Takes objectives by name, as `objectives_of` makes them."""
        self._objectives = dict(objectives)

    def __call__(
        self, batch: MicroBatch, weights: Mapping[str, float], normaliser: Tensor | float
    ) -> WeightedLoss:
        """The loss of one micro batch.

        Args:
            batch: the micro batch.
            weights: weight by objective name at this step, from the ledger.
            normaliser: predicted tokens (`count_targets`) of the whole optimiser step, over all micro batches
                and ranks, divided by the ranks where gradients are averaged over them (DDP, FSDP). So each
                token of the step weighs the same, however it is spread.

        Raises:
            BadInput: a weight is negative, not finite or of an unknown objective, or none is above 0.
        """
        self._check(weights)
        total: Tensor | None = None
        parts = []
        for name, weight in weights.items():
            if weight == 0:
                continue
            loss = self._objectives[name](batch)
            term = weight * loss.total / normaliser
            total = term if total is None else total + term
            parts.append(ObjectiveLoss(name, weight, TokenLoss(loss.total.detach(), loss.tokens)))
        if total is None:
            raise BadInput(
                f"no objective has weight at this step (weights {dict(weights)}); give one a weight"
            )
        return WeightedLoss(total, tuple(parts))

    def _check(self, weights: Mapping[str, float]) -> None:
        for name, weight in weights.items():
            if name not in self._objectives:
                raise BadInput(
                    f"objective {name!r} has weight {weight} but this phase has no such objective; "
                    f"it has {', '.join(self._objectives)}"
                )
            if not (math.isfinite(weight) and weight >= 0):
                raise BadInput(f"objective {name!r} has weight {weight}; a weight is a number from 0 up")


def add_up(losses: Iterable[WeightedLoss]) -> tuple[ObjectiveLoss, ...]:
    """The parts of several micro batches of one step as one, each objective weighed by its tokens."""
    sums: dict[str, ObjectiveLoss] = {}
    for part in (part for loss in losses for part in loss.parts):
        before = sums.get(part.name)
        sums[part.name] = (
            part
            if before is None
            else ObjectiveLoss(
                part.name,
                part.weight,
                TokenLoss(before.loss.total + part.loss.total, before.loss.tokens + part.loss.tokens),
            )
        )
    return tuple(sums.values())
