"""The manager of objectives: runs those that have weight, and adds them up.

The weights come from the ledger at each step; an objective of weight 0, or one that the phase does not
name, is never called, so nothing of its preparation can touch the others.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from bitnet_crds import objectives as asked
from bitnet_trainer.answer import Capture
from bitnet_trainer.batch import Rows
from bitnet_trainer.errors import BadInput
from bitnet_trainer.objectives.attention_relations import AttentionRelationsObjective
from bitnet_trainer.objectives.block_attention import BlockAttentionObjective
from bitnet_trainer.objectives.classification import ClassificationObjective
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.objectives.hidden_states import HiddenStatesObjective
from bitnet_trainer.objectives.masked_diffusion import MaskedDiffusionObjective
from bitnet_trainer.objectives.masking import Masking
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.objective import Objective
from bitnet_trainer.objectives.teacher_logits import TeacherLogitsObjective
from bitnet_trainer.objectives.token_loss import TokenLoss

HEAD_READERS = frozenset({"crossEntropy", "maskedDiffusion", "teacherLogits", "classification"})
"""Objectives whose gradient reaches the head, and with it every layer."""


@dataclass(frozen=True)
class ObjectiveLoss:
    """One objective's part in a loss, for the log. Tensors stay on the device: reading them is a sync."""

    name: str
    weight: float
    loss: TokenLoss
    """Without gradient."""

    @property
    def raw(self) -> Tensor:
        """Mean loss a term, unweighted, 0-dim, nats."""
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


def objectives_of(
    named: Mapping[str, asked.Objective], *, key_heads: int, mask_tokens: Mapping[str, int], seed: int
) -> dict[str, Objective]:
    """The objectives that a phase of a run names, by their names in YAML.

    Args:
        named: what the phase asks for, as `Objectives.named` gives it.
        key_heads: of the student.
        mask_tokens: the id of each mask token that the run names; of the tokenizer's own under "".
        seed: the run's; what is masked follows from it.
    """
    masking = None
    if isinstance(diffusion := named.get("maskedDiffusion"), asked.MaskedDiffusion):
        masking = Masking(
            diffusion.mask_probability, mask_tokens[diffusion.mask_token or ""], diffusion.mode, seed
        )
    return {name: _objective(wanted, key_heads, masking) for name, wanted in named.items()}


def _objective(wanted: asked.Objective, key_heads: int, masking: Masking | None) -> Objective:
    match wanted:
        case asked.CrossEntropy():
            return CrossEntropyObjective()
        case asked.MaskedDiffusion():
            assert masking is not None
            return MaskedDiffusionObjective(masking)
        case asked.TeacherLogits():
            return TeacherLogitsObjective(
                wanted.temperature,
                wanted.top_k,
                wanted.tail or "Bucket",
                masking if wanted.input == "Masked" else None,
            )
        case asked.BlockAttention():
            return BlockAttentionObjective(wanted.layer, wanted.relation_heads, key_heads, wanted.block_size)
        case asked.AttentionRelations():
            return AttentionRelationsObjective(wanted.layer, wanted.relation_heads, key_heads)
        case asked.HiddenStates():
            return HiddenStatesObjective(wanted.distance, wanted.layers or "Uniform", wanted.layer_weights)
        case asked.Classification():
            return ClassificationObjective()
    raise BadInput(f"no objective is known for {type(wanted).__name__}")


class ObjectiveManager:
    """Computes `total = sum of weight * loss` over a phase's objectives. Stateless between calls."""

    def __init__(self, objectives: Mapping[str, Objective]) -> None:
        """Takes objectives by name, as `objectives_of` makes them."""
        self._objectives = dict(objectives)

    def capture(self, weights: Mapping[str, float], layers: int) -> Capture:
        """What all objectives of weight together want kept of the student's forward pass on clean text."""
        capture = Capture()
        for _, objective in self._weighed(weights):
            capture |= objective.capture(layers)
        return capture

    def count(self, micro_batches: Sequence[Rows], weights: Mapping[str, float]) -> dict[str, int]:
        """How many terms each objective of weight has in these rows, by name."""
        return {
            name: sum(objective.count(rows) for rows in micro_batches)
            for name, objective in self._weighed(weights)
        }

    def __call__(
        self, batch: MicroBatch, weights: Mapping[str, float], normalisers: Mapping[str, float]
    ) -> WeightedLoss:
        """The loss of one micro batch.

        Args:
            batch: the micro batch.
            weights: weight by objective name at this step, from the ledger.
            normalisers: by objective, its terms (`count`) in the whole optimiser step, over all micro batches
                and ranks, divided by the ranks where gradients are averaged over them (DDP, FSDP). So each
                term of the step weighs the same, however they are spread.

        Raises:
            BadInput: a weight is negative, not finite or of an unknown objective, or none is above 0.
        """
        total: Tensor | None = None
        parts = []
        for name, objective in self._weighed(weights):
            loss = objective(batch)
            # A step may have no term at all, such as no masked token; its loss is 0 then, and not 0 / 0.
            term = weights[name] * loss.total / (normalisers[name] or 1.0)
            total = term if total is None else total + term
            parts.append(ObjectiveLoss(name, weights[name], TokenLoss(loss.total.detach(), loss.tokens)))
        if total is None:
            raise BadInput(
                f"no objective has weight at this step (weights {dict(weights)}); give one a weight"
            )
        return WeightedLoss(total, tuple(parts))

    def _weighed(self, weights: Mapping[str, float]) -> list[tuple[str, Objective]]:
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise BadInput(f"objective {name!r} has weight {weight}; a weight is a number from 0 up")
            if weight > 0 and name not in self._objectives:
                raise BadInput(
                    f"objective {name!r} has weight {weight} but this phase has no such objective; "
                    f"it has {', '.join(self._objectives)}"
                )
        return [(name, self._objectives[name]) for name, weight in weights.items() if weight > 0]


def add_up(losses: Iterable[WeightedLoss]) -> tuple[ObjectiveLoss, ...]:
    """The parts of several micro batches of one step as one, each objective weighed by its terms."""
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
