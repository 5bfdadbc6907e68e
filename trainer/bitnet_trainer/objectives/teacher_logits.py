"""Objective `teacherLogits`: the student's distribution over the vocabulary follows the teacher's."""

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor

from bitnet_trainer.answer import Answer, Capture
from bitnet_trainer.batch import IGNORED, Rows
from bitnet_trainer.objectives.masking import Masking
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.token_loss import (
    CHUNK_TOKENS,
    TokenLoss,
    count_targets,
    next_tokens,
    sum_over_chunks,
)
from bitnet_trainer.objectives.top_k import TopK
from bitnet_trainer.precision import at_least_float32

Tail = Literal["Bucket", "Renormalized"]


def teacher_logits(
    student: Answer, teacher: Answer, labels: Tensor, temperature: float, chunk_tokens: int = CHUNK_TOKENS
) -> TokenLoss:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))`, summed over the tokens that are predicted.

    T^2 keeps the gradient's size the same for every T. Both heads are applied to a chunk of tokens at a time,
    in the backward pass again, so that logits (B, S, V) never exist. Source: Hinton et al., arXiv 1503.02531.

    Args:
        student: its hidden states (B, S, D) and head, with gradient.
        teacher: the same, perhaps of another D; none of it gets a gradient.
        labels: (B, S), not shifted. Both models' row s speaks of token s + 1, so rows are compared at the
            same s, and where labels[s + 1] is -100 they are not.
        temperature: T > 0.
        chunk_tokens: how many tokens' logits are held at once.

    Returns:
        Sum in nats and count; 0 and 0 where every label is -100.
    """

    def chunk(student_hidden: Tensor, teacher_hidden: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            log_teacher = _scaled(teacher, teacher_hidden, temperature).log_softmax(-1)
        log_student = _scaled(student, student_hidden, temperature).log_softmax(-1)
        return _sum_where_predicted(_divergence(log_teacher, log_student), targets) * temperature**2

    total = sum_over_chunks(
        chunk,
        student.hidden.flatten(0, 1),
        teacher.hidden.detach().flatten(0, 1),
        next_tokens(labels).flatten(),
        chunk_rows=chunk_tokens,
    )
    return TokenLoss(total, count_targets(labels))


def teacher_top_k(
    student: Answer,
    teacher: TopK,
    labels: Tensor,
    temperature: float,
    tail: Tail,
    chunk_tokens: int = CHUNK_TOKENS,
) -> TokenLoss:
    """`teacher_logits` over the teacher's K likeliest tokens.

    Bucket: KL over K + 1 outcomes, the last being all other tokens; where K is the whole vocabulary, that is
    KL over the vocabulary. Renormalized: KL over K outcomes, each side's divided by their sum, so that
    nothing is learned of the mass that the student has elsewhere.

    Args:
        student, labels, temperature, chunk_tokens: as for `teacher_logits`.
        teacher: (B, S) positions, its normaliser for this temperature.
        tail: what becomes of the other tokens.
    """

    def chunk(
        hidden: Tensor, logits: Tensor, tokens: Tensor, log_normaliser: Tensor, targets: Tensor
    ) -> Tensor:
        own = _scaled(student, hidden, temperature)  # (N, V)
        goal = at_least_float32(logits) / temperature  # (N, K)
        if tail == "Renormalized":
            divergence = _divergence(goal.log_softmax(-1), own.gather(-1, tokens).log_softmax(-1))
        else:
            log_goal = goal - log_normaliser[:, None]
            own_normaliser = own.logsumexp(-1)
            divergence = _divergence(log_goal, own.gather(-1, tokens) - own_normaliser[:, None])
            if tokens.shape[-1] < own.shape[-1]:
                # Summed over the other tokens themselves: 1 minus the top's mass would round to 0, or below,
                # where the student is sure, and its gradient be infinite.
                log_own_tail = own.scatter(-1, tokens, -torch.inf).logsumexp(-1) - own_normaliser
                # The teacher's others are gone. What is no more than the normaliser's rounding is no mass:
                # times the student's log, which may be any number, it would be a loss.
                rest = -torch.expm1(log_goal.logsumexp(-1))
                rounding = 2 * torch.finfo(rest.dtype).eps * log_normaliser.abs()
                goal_tail = torch.where(rest > rounding, rest, 0.0)
                divergence = divergence + torch.xlogy(goal_tail, goal_tail) - goal_tail * log_own_tail
        return _sum_where_predicted(divergence, targets) * temperature**2

    total = sum_over_chunks(
        chunk,
        student.hidden.flatten(0, 1),
        teacher.logits.flatten(0, 1),
        teacher.tokens.flatten(0, 1),
        teacher.log_normaliser.flatten(),
        next_tokens(labels).flatten(),
        chunk_rows=chunk_tokens,
    )
    return TokenLoss(total, count_targets(labels))


@dataclass(frozen=True)
class TeacherLogitsObjective:
    """`teacherLogits` of a run."""

    temperature: float
    top_k: int | None
    """How many of the teacher's tokens are compared; none for the whole vocabulary."""
    tail: Tail
    """With `top_k`."""
    masking: Masking | None
    """Where the student sees masked text: how it is masked. It is compared at the masked tokens, with a
    teacher that sees the text (target concrete scores, arXiv 2504.16431)."""

    def capture(self, layers: int) -> Capture:  # noqa: ARG002
        """Nothing."""
        return Capture()

    def count(self, rows: Rows) -> int:
        """The tokens that are predicted, or masked."""
        seen = rows if self.masking is None else self.masking(rows)
        return int(count_targets(seen.labels))

    def __call__(self, batch: MicroBatch) -> TokenLoss:
        """Divergence in nats from the batch's teacher. Raises TeacherUnavailable where the batch has none."""
        rows, student = (batch.rows, batch.student) if self.masking is None else batch.masked(self.masking)
        teacher = batch.teacher if self.top_k is None else batch.teacher_top_k(self.top_k, self.temperature)
        # Masking may give each row twice; the teacher saw it once.
        size = len(batch.rows)
        halves = zip(torch.split(student.hidden, size), torch.split(rows.labels, size), strict=True)
        return reduce(
            add, (self._loss(student._replace(hidden=hidden), teacher, labels) for hidden, labels in halves)
        )

    def _loss(self, student: Answer, teacher: Answer | TopK, labels: Tensor) -> TokenLoss:
        if isinstance(teacher, TopK):
            return teacher_top_k(student, teacher, labels, self.temperature, self.tail)
        return teacher_logits(student, teacher, labels, self.temperature)


def _scaled(answer: Answer, hidden: Tensor, temperature: float) -> Tensor:
    """(N, D) -> logits / T, (N, V) float32."""
    return at_least_float32(answer.head(hidden)) / temperature


def _divergence(log_goal: Tensor, log_own: Tensor) -> Tensor:
    """(N, outcomes) each -> (N,): the sum over outcomes of `p (log p - log q)`, 0 where p is 0."""
    # A logit of -inf, by which a model may rule a token out, would make 0 * inf.
    terms = torch.where(log_goal == -torch.inf, 0.0, log_goal.exp() * (log_goal - log_own))
    return terms.sum(-1)


def _sum_where_predicted(divergence: Tensor, targets: Tensor) -> Tensor:
    """(N,) each -> 0-dim."""
    return torch.where(targets == IGNORED, 0.0, divergence).sum()
