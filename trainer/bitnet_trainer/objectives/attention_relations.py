"""Objective `attentionRelations`: the student's tokens relate to each other as the teacher's do."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitnet_trainer.answer import Capture, Projections
from bitnet_trainer.batch import Rows
from bitnet_trainer.errors import BadInput
from bitnet_trainer.objectives.micro_batch import MicroBatch, corresponding_layer
from bitnet_trainer.objectives.token_loss import CHUNK_ELEMENTS, TokenLoss, sum_over_chunks
from bitnet_trainer.precision import at_least_float32


def attention_relations(
    student: Projections,
    teacher: Projections,
    tokens: Tensor,
    relation_heads: int,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> TokenLoss:
    """KL(teacher || student) of `softmax(A A^T / sqrt(d))`, summed over A in Q, K, V and the row's tokens.

    A is split into R relation heads of d = width / R each, whatever heads the model has, and the mean is
    taken over them; so student and teacher may differ in width and heads. A token relates to all tokens of
    its row, those after it too. Sources: MiniLMv2, arXiv 2012.15828; BitDistill, arXiv 2510.13998.

    Args:
        student: (B, S, width) each, with gradient.
        teacher: the same for the same tokens; none of it gets a gradient.
        tokens: (B, S) bool; padding, where it is false, relates to nothing and nothing to it.
        relation_heads: R, which divides all widths.
        chunk_elements: values that the (S, S) relations held at once may have; at least one head's are.

    Returns:
        Sum in nats and count of tokens; 0 and 0 where there are none.
    """
    length = tokens.shape[1]
    pairs = zip(student, teacher, strict=True)
    sums = [
        sum_over_chunks(
            _relation_divergence,
            _split(own, relation_heads),
            _split(goal.detach(), relation_heads),
            tokens[:, None].expand(-1, relation_heads, -1).flatten(0, 1),
            chunk_rows=max(1, chunk_elements // length**2),
        )
        for own, goal in pairs
    ]
    return TokenLoss(torch.stack(sums).sum() / relation_heads, tokens.sum())


def _split(projection: Tensor, relation_heads: int) -> Tensor:
    """(B, S, width) -> (B * R, S, width / R)."""
    rows, length, width = projection.shape
    heads = projection.view(rows, length, relation_heads, width // relation_heads)
    return heads.transpose(1, 2).flatten(0, 1)


def _relation_divergence(student: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
    """(N, S, d), (N, S, another d), (N, S) -> 0-dim."""
    log_own, log_goal = _log_relations(student, tokens), _log_relations(teacher, tokens)
    divergence = (log_goal.exp() * (log_goal - log_own)).sum(-1)  # (N, S)
    return torch.where(tokens, divergence, 0.0).sum()


def _log_relations(vectors: Tensor, tokens: Tensor) -> Tensor:
    """(N, S, d), (N, S) -> log softmax (N, S, S)."""
    # Under autocast the products would be rounded to bfloat16, and a relation of 50 be off by 0.1.
    with torch.autocast(vectors.device.type, enabled=False):
        vectors = at_least_float32(vectors)
        scores = vectors @ vectors.mT / math.sqrt(vectors.shape[-1])
        # Finite, so that a row of padding alone is no NaN; half, so that subtracting a score stays finite.
        return scores.masked_fill(~tokens[:, None], torch.finfo(scores.dtype).min / 2).log_softmax(-1)


@dataclass(frozen=True)
class AttentionRelationsObjective:
    """`attentionRelations` of a run."""

    name: ClassVar[str] = "attentionRelations"

    layer: int | None
    """The student's, from 0; none for the one three quarters up."""
    relation_heads: int | None
    """None for as many as the student has key heads."""
    key_heads: int
    """The student's."""

    def capture(self, layers: int) -> Capture:
        """Queries, keys and values of one layer. Raises BadInput where the student has no such layer."""
        return Capture(projections=frozenset({self._layer(layers)}))

    def count(self, rows: Rows) -> int:
        """All tokens but padding."""
        return int(rows.tokens.sum())

    def __call__(self, batch: MicroBatch) -> TokenLoss:
        """Divergence in nats from the batch's teacher, whose layer is the one at the same relative depth.

        Raises:
            BadInput: the projections cannot be split into so many relation heads.
            TeacherUnavailable: the batch has no teacher.
        """
        layer = self._layer(batch.layers)
        teacher_layer = corresponding_layer(layer, batch.layers, batch.teacher_layers)
        student = batch.student.projections[layer]
        teacher = batch.teacher.projections[teacher_layer]
        self._check_widths(student, teacher, layer, teacher_layer)
        return self._loss(student, teacher, batch.rows.tokens)

    def _loss(self, student: Projections, teacher: Projections, tokens: Tensor) -> TokenLoss:
        return attention_relations(student, teacher, tokens, self._heads)

    @property
    def _heads(self) -> int:
        return self.relation_heads or self.key_heads

    def _layer(self, layers: int) -> int:
        layer = 3 * layers // 4 if self.layer is None else self.layer
        if layer >= layers:
            raise BadInput(
                f"{self.name} names layer {layer}, and the student has the layers 0 to {layers - 1}; "
                "write one of these as `layer`, or leave it out"
            )
        return layer

    def _check_widths(
        self, student: Projections, teacher: Projections, layer: int, teacher_layer: int
    ) -> None:
        own, goal = ([projection.shape[-1] for projection in side] for side in (student, teacher))
        common = math.gcd(*own, *goal)
        if common % self._heads:
            fitting = max(heads for heads in range(1, self._heads) if common % heads == 0)
            raise BadInput(
                f"{self.name} cannot split queries, keys and values into {self._heads} relation heads each: "
                f"they are {own} wide in the student's layer {layer} and {goal} in the teacher's "
                f"{teacher_layer}; write a number that divides all widths as `relationHeads`, such as "
                f"{fitting}"
            )
