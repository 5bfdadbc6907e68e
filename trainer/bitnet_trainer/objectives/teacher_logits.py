"""Objective `teacherLogits`: the student's distribution over the vocabulary follows the teacher's."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor

from bitnet_trainer.answer import Answer, Capture
from bitnet_trainer.batch import IGNORED, Rows
from bitnet_trainer.objectives.head_loss import sum_over_tokens
from bitnet_trainer.objectives.kernels.rows import Pull, divergences, log_sums
from bitnet_trainer.objectives.masking import Masking
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.token_loss import TokenLoss, count_targets, next_tokens
from bitnet_trainer.objectives.top_k import TopK
from bitnet_trainer.precision import at_least_float32

Tail = Literal["Bucket", "Renormalized"]


def teacher_logits(
    student: Answer, teacher: Answer, labels: Tensor, temperature: float, chunk_tokens: int | None = None
) -> TokenLoss:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))`, summed over the tokens that are predicted.

    T^2 keeps the gradient's size the same for every T. Both heads are applied to a chunk of tokens at a time,
    so that logits (B, S, V) never exist. Source: Hinton et al., arXiv 1503.02531.

    Args:
        student: its hidden states (B, S, D) and head, with gradient.
        teacher: the same, perhaps of another D; none of it gets a gradient.
        labels: (B, S), not shifted. Both models' row s speaks of token s + 1, so rows are compared at the
            same s, and where labels[s + 1] is -100 they are not.
        temperature: T > 0.
        chunk_tokens: how many tokens' logits are held at once, if it is to be given.

    Returns:
        Sum in nats and count; 0 and 0 where every label is -100.
    """
    total = sum_over_tokens(
        partial(of_teacher, head=teacher.head, temperature=temperature),
        student.hidden.flatten(0, 1),
        student.head,
        teacher.hidden.detach().flatten(0, 1),
        next_tokens(labels).flatten(),
        chunk_tokens=chunk_tokens,
        held=2,
    )
    return TokenLoss(total, count_targets(labels))


def teacher_top_k(
    student: Answer,
    teacher: TopK,
    labels: Tensor,
    temperature: float,
    tail: Tail,
    chunk_tokens: int | None = None,
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
    total = sum_over_tokens(
        partial(of_top_k, temperature=temperature, tail=tail),
        student.hidden.flatten(0, 1),
        student.head,
        teacher.logits.flatten(0, 1),
        teacher.tokens.flatten(0, 1),
        teacher.log_normaliser.flatten(),
        next_tokens(labels).flatten(),
        chunk_tokens=chunk_tokens,
    )
    return TokenLoss(total, count_targets(labels))


def of_teacher(
    logits: Tensor,
    hidden: Tensor,
    targets: Tensor,
    *,
    gradient: bool,
    head: Callable[[Tensor], Tensor],
    temperature: float,
) -> Tensor:
    """The `LogitsLoss` of the teacher's hidden states (n, D): T^2 KL in nats, 0 where a target is IGNORED."""
    predicted = targets != IGNORED
    with torch.no_grad():
        goal = head(hidden)
    # In logits / T it is T^2 times the gradient, and so in logits T times.
    dtype = at_least_float32(logits[:0]).dtype
    weights = predicted.to(dtype) * temperature if gradient else None
    divergence = divergences(logits, goal, temperature, weights)
    return torch.where(predicted, divergence, 0.0) * temperature**2


def of_top_k(
    logits: Tensor,
    top: Tensor,
    tokens: Tensor,
    log_normaliser: Tensor,
    targets: Tensor,
    *,
    gradient: bool,
    temperature: float,
    tail: Tail,
) -> Tensor:
    """The `LogitsLoss` of a `TopK`, (n, K), (n, K) and (n,): T^2 KL, 0 where a target is IGNORED.

    Of outcomes p and q, whose sums are the same, the gradient of KL in logits / T is q - p.
    """
    predicted = targets != IGNORED
    goal = at_least_float32(top) / temperature  # (n, K)
    own = at_least_float32(logits.gather(-1, tokens)) / temperature  # (n, K)
    own_top = own.logsumexp(-1)  # (n,)
    weights = predicted.to(own.dtype) * temperature
    if tail == "Renormalized":
        log_goal = goal.log_softmax(-1)
        outcomes = log_goal.exp()
        mass, own_all = outcomes.sum(-1), own_top
        divergence = _divergence(log_goal, own - own_all[:, None])
        if gradient:
            logits.zero_()
    else:
        log_goal = goal - log_normaliser[:, None]
        outcomes = log_goal.exp()
        others = _tail(log_goal, log_normaliser) if tokens.shape[-1] < logits.shape[-1] else own_top * 0.0
        mass = outcomes.sum(-1) + others
        # Summed over the other tokens themselves: 1 minus the top's mass would round to 0, or below, where
        # the student is sure, and its gradient be infinite.
        rest = logits.scatter_ if gradient else logits.scatter
        pull = Pull(own_top, weights * mass, weights * others) if gradient else None
        own_others = log_sums(rest(-1, tokens, -torch.inf), temperature, pull)
        own_all = torch.logaddexp(own_others, own_top)
        of_others = torch.xlogy(others, others) - others * (own_others - own_all)
        divergence = _divergence(log_goal, own - own_all[:, None]) + torch.where(others > 0, of_others, 0.0)
    if gradient:
        inside = (own - own_all[:, None]).exp() * mass[:, None] - outcomes
        logits.scatter_(-1, tokens, (weights[:, None] * inside).to(logits.dtype))
    return torch.where(predicted, divergence, 0.0) * temperature**2


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


def _tail(log_goal: Tensor, log_normaliser: Tensor) -> Tensor:
    """What the teacher gives the tokens that are not in its top, (n, K) and (n,) -> (n,).

    Its others are gone. What is no more than the normaliser's rounding is no mass: times the student's log,
    which may be any number, it would be a loss.
    """
    rest = -torch.expm1(log_goal.logsumexp(-1))
    rounding = 2 * torch.finfo(rest.dtype).eps * log_normaliser.abs()
    return torch.where(rest > rounding, rest, 0.0)


def _divergence(log_goal: Tensor, log_own: Tensor) -> Tensor:
    """(n, outcomes) each -> (n,): the sum over outcomes of `p (log p - log q)`, 0 where p is 0."""
    # A logit of -inf, by which a model may rule a token out, would make 0 * inf.
    terms = torch.where(log_goal == -torch.inf, 0.0, log_goal.exp() * (log_goal - log_own))
    return terms.sum(-1)
