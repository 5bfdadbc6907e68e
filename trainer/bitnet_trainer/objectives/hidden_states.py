"""Objective `hiddenStates`: what the student's layers put out follows the teacher's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitnet_trainer.answer import Capture
from bitnet_trainer.batch import Rows
from bitnet_trainer.errors import BadInput
from bitnet_trainer.objectives.micro_batch import MicroBatch, corresponding_layer
from bitnet_trainer.objectives.token_loss import CHUNK_ELEMENTS, TokenLoss, sum_over_chunks
from bitnet_trainer.precision import at_least_float32

Distance = Literal["MeanSquared", "Normalized", "Cosine"]

SMALLEST_MEAN_SQUARE = 1e-12
"""A vector of less is not divided by its root mean square: the gradient would be without bound."""


def hidden_states(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    tokens: Tensor,
    distance: Distance,
    layer_weights: Sequence[float],
    chunk_elements: int = CHUNK_ELEMENTS,
) -> TokenLoss:
    """The distance between two models' hidden states, weighted over layers, summed over tokens.

    MeanSquared: `mean (s - t)^2` over D. Normalized: the same after s and t are each divided by their root
    mean square. Cosine: `1 - s t / (|s| |t|)`; 1 where one of them is 0.

    Args:
        student: (B, S, D) a layer, with gradient.
        teacher: as many, each for the student's at the same index; none of them gets a gradient.
        tokens: (B, S) bool; padding, where it is false, does not count.
        distance: which.
        layer_weights: one a layer; they are divided by their sum.
        chunk_elements: how many float32 values are held at once of a layer's states.

    Returns:
        Sum and count of tokens; 0 and 0 where there are none.
    """

    def chunk(student: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
        apart = _distance(at_least_float32(student), at_least_float32(teacher), distance)
        return torch.where(tokens, apart, 0.0).sum()

    scale = sum(layer_weights)
    weighted = [
        weight
        / scale
        * sum_over_chunks(
            chunk,
            own.flatten(0, 1),
            goal.detach().flatten(0, 1),
            tokens.flatten(),
            chunk_rows=max(1, chunk_elements // own.shape[-1]),
        )
        for weight, own, goal in zip(layer_weights, student, teacher, strict=True)
        if weight
    ]
    return TokenLoss(torch.stack(weighted).sum(), tokens.sum())


def _distance(student: Tensor, teacher: Tensor, distance: Distance) -> Tensor:
    """(N, D) each -> (N,)."""
    if distance == "MeanSquared":
        return (student - teacher).square().mean(-1)
    student, teacher = _normalized(student), _normalized(teacher)
    if distance == "Normalized":
        return (student - teacher).square().mean(-1)
    return 1 - (student * teacher).mean(-1)


def _normalized(x: Tensor) -> Tensor:
    """x of root mean square 1 along D."""
    mean_square = x.square().mean(-1, keepdim=True)
    return x * torch.where(mean_square > SMALLEST_MEAN_SQUARE, mean_square, 1.0).rsqrt()


@dataclass(frozen=True)
class HiddenStatesObjective:
    """`hiddenStates` of a run."""

    distance: Distance
    layers: Literal["Uniform", "Progressive"]
    """How layers weigh. Progressive: layer l, from 1, as l."""
    layer_weights: tuple[float, ...] | None
    """One for each of the student's layers, instead of `layers`."""

    def capture(self, layers: int) -> Capture:
        """Hidden states. Raises BadInput where the layer weights are not as many as the student's layers."""
        self._weights(layers)
        return Capture(hidden_states=True)

    def count(self, rows: Rows) -> int:
        """All tokens but padding."""
        return int(rows.tokens.sum())

    def __call__(self, batch: MicroBatch) -> TokenLoss:
        """Distance from the batch's teacher, whose layers are those at the same relative depth.

        Raises:
            BadInput: the two differ in hidden size, or the layer weights are not as many as layers.
            TeacherUnavailable: the batch has no teacher.
        """
        student, states = batch.student.hidden_states, batch.teacher.hidden_states
        weights = self._weights(len(student))
        teacher = [
            states[corresponding_layer(layer, len(student), len(states))] for layer in range(len(student))
        ]
        own, goal = student[0].shape[-1], teacher[0].shape[-1]
        if own != goal:
            raise BadInput(
                f"hiddenStates compares vectors, and the student's have {own} numbers, the teacher's {goal}; "
                "name a teacher of the student's hidden size, or use attentionRelations, which needs none"
            )
        return hidden_states(student, teacher, batch.rows.tokens, self.distance, weights)

    def _weights(self, layers: int) -> Sequence[float]:
        if self.layer_weights is None:
            return (
                [1.0] * layers if self.layers == "Uniform" else [float(layer + 1) for layer in range(layers)]
            )
        if len(self.layer_weights) != layers:
            raise BadInput(
                f"hiddenStates has {len(self.layer_weights)} layerWeights for the student's {layers} layers; "
                "give each layer one (0 leaves it out), or use `layers: Progressive`"
            )
        return self.layer_weights
