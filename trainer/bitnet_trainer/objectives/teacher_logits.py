"""Objective `teacherLogits`: the student's distribution over the vocabulary follows the teacher's."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet_trainer.errors import TeacherUnavailable
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.token_loss import (
    CHUNK_TOKENS,
    IGNORED,
    TokenLoss,
    at_least_float32,
    count_targets,
    next_tokens,
    sum_over_chunks,
)


def teacher_logits(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, chunk_tokens: int = CHUNK_TOKENS
) -> TokenLoss:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))`, summed over the tokens that CE predicts.

    T^2 keeps the gradient's size the same for every T. Source: Hinton et al., arXiv 1503.02531.

    Args:
        student: logits (B, S, V), with gradient.
        teacher: logits (B, S, V) for the same input; none of them gets a gradient.
        labels: (B, S), not shifted. Both models' row s speaks of token s + 1, so rows are compared at the
            same s, and where labels[s + 1] is -100 they are not.
        temperature: T > 0.
        chunk_tokens: how many tokens' float32 values are held at once.

    Returns:
        Sum in nats and count; 0 and 0 where every label is -100.
    """

    def chunk(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        log_student = F.log_softmax(at_least_float32(student) / temperature, dim=-1)
        log_teacher = F.log_softmax(at_least_float32(teacher) / temperature, dim=-1)
        divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(-1)
        return torch.where(targets == IGNORED, 0.0, divergence).sum() * temperature**2

    total = sum_over_chunks(
        chunk,
        student.flatten(0, 1),
        teacher.detach().flatten(0, 1),
        next_tokens(labels).flatten(),
        chunk_tokens=chunk_tokens,
    )
    return TokenLoss(total, count_targets(labels))


@dataclass(frozen=True)
class TeacherLogitsObjective:
    """`teacherLogits` of a run."""

    temperature: float

    def __call__(self, batch: MicroBatch) -> TokenLoss:
        """Distils from the batch's teacher. Raises TeacherUnavailable where the batch has none."""
        if batch.teacher_logits is None:
            raise TeacherUnavailable(
                "teacherLogits has weight in this phase but no teacher is loaded; "
                "load the one of spec.teacher before the phase begins"
            )
        return teacher_logits(batch.student_logits, batch.teacher_logits, batch.labels, self.temperature)
