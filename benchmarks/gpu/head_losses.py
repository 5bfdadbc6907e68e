"""Losses of hidden states and a head: ours, logits held whole, and what both should be, in float64."""

import argparse
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from step import DEVICE
from torch import Tensor, nn

from bitnet_trainer.answer import Answer
from bitnet_trainer.batch import IGNORED
from bitnet_trainer.objectives.cross_entropy import cross_entropy_of
from bitnet_trainer.objectives.head_loss import sum_over_tokens
from bitnet_trainer.objectives.teacher_logits import Tail, teacher_logits, teacher_top_k
from bitnet_trainer.objectives.token_loss import next_tokens
from bitnet_trainer.objectives.top_k import TopK, top_k_of

TOP, TEMPERATURE = 100, 2.0
DENSE_CE, CE = "CE, logits whole, one compiled graph", "CE, ours"
DENSE_KL, GIVEN = "KL, logits whole, plain torch", f"top {TOP} Bucket, ours, teacher's top given"


@dataclass
class Batch:
    """What the losses are of."""

    hidden: Tensor
    """(B, S, D) float32, the student's; it has a gradient, and so has the head's weight."""
    head: nn.Linear
    teacher_hidden: Tensor
    """(B, S, D') bfloat16 on CUDA."""
    teacher_head: nn.Linear
    labels: Tensor
    """(B, S)."""
    top: TopK

    @classmethod
    def drawn(cls, options: argparse.Namespace) -> "Batch":
        """Logits have a standard deviation of 3; a third of the hidden states is the same in both."""
        torch.manual_seed(0)
        size, vocabulary = (options.rows, options.length), options.vocabulary
        short = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32

        def linear(width: int) -> nn.Linear:
            head = nn.Linear(width, vocabulary, bias=False, device=DEVICE)
            nn.init.normal_(head.weight, std=3 / width**0.5)
            return head

        head, teacher_head = linear(options.hidden), linear(options.teacher_hidden)
        with torch.no_grad():
            shared = min(options.hidden, options.teacher_hidden) // 3
            teacher_head.weight[:, :shared] = (
                head.weight[:, :shared] * (options.hidden / options.teacher_hidden) ** 0.5
            )
        hidden = torch.randn(*size, options.hidden, device=DEVICE)
        teacher_hidden = torch.randn(*size, options.teacher_hidden, device=DEVICE)
        teacher_hidden[..., :shared] = hidden[..., :shared]
        teacher_head = teacher_head.to(short).requires_grad_(False)
        labels = torch.randint(vocabulary, size, device=DEVICE)
        return cls.of(hidden, head, teacher_hidden.to(short), teacher_head, labels)

    @classmethod
    def of(cls, hidden: Tensor, head: nn.Linear, *rest: object) -> "Batch":
        """With the teacher's top."""
        teacher_hidden, teacher_head, labels = rest
        top = top_k_of(teacher_hidden, teacher_head, TOP, TEMPERATURE)
        return cls(hidden.requires_grad_(), head, teacher_hidden, teacher_head, labels, top)

    def first(self, tokens: int) -> "Batch":
        """So many tokens of one row; the heads are the same."""
        row, teacher = (side[:1, :tokens].detach().clone() for side in (self.hidden, self.teacher_hidden))
        return Batch.of(row, self.head, teacher, self.teacher_head, self.labels[:1, :tokens])

    @property
    def targets(self) -> Tensor:
        """(B * S,)."""
        return next_tokens(self.labels).flatten()

    @property
    def student(self) -> Answer:
        """The student's."""
        return Answer(self.hidden, self.head)


Loss = Callable[[Batch], Tensor]
"""Summed over the tokens, 0-dim."""


# --- logits held whole


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, weight).float()
    return F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum")


def dense_cross_entropy() -> Loss:
    """Compiled as a whole: the fastest that is not fused with its products."""
    compiled = torch.compile(_plain, dynamic=False)
    return lambda batch: compiled(batch.hidden, batch.head.weight, batch.targets)


def dense_divergence(batch: Batch) -> Tensor:
    """Over the whole vocabulary."""
    with torch.no_grad():
        goal = (batch.teacher_head(batch.teacher_hidden).float() / TEMPERATURE).log_softmax(-1)
    own = (batch.head(batch.hidden).float() / TEMPERATURE).log_softmax(-1)
    each = F.kl_div(own, goal, log_target=True, reduction="none").sum(-1).flatten()
    return torch.where(batch.targets != IGNORED, each, 0.0).sum() * TEMPERATURE**2


def liger() -> Loss:
    """Liger's head and cross-entropy in one, in bfloat16."""
    fused = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss(
        ignore_index=IGNORED, reduction="sum"
    )

    def loss(batch: Batch) -> Tensor:
        weight, hidden = batch.head.weight.bfloat16(), batch.hidden.flatten(0, 1).bfloat16()
        value: Tensor = fused(weight, hidden, batch.targets)
        return value

    return loss


# --- ours


def cross_entropy(batch: Batch, chunk: int | None = None) -> Tensor:
    """The trainer's own."""
    return cross_entropy_of(batch.hidden, batch.head, batch.labels, chunk).total


def divergence(batch: Batch) -> Tensor:
    """Over the whole vocabulary, the teacher's head included."""
    teacher = Answer(batch.teacher_hidden, batch.teacher_head)
    return teacher_logits(batch.student, teacher, batch.labels, TEMPERATURE).total


def top_k(batch: Batch, *, tail: Tail = "Bucket", live: bool = False) -> Tensor:
    """Over the teacher's top; `live` computes it, the teacher's head included."""
    top = top_k_of(batch.teacher_hidden, batch.teacher_head, TOP, TEMPERATURE) if live else batch.top
    return teacher_top_k(batch.student, top, batch.labels, TEMPERATURE, tail).total


def products(batch: Batch) -> Tensor:
    """Not a loss: the head's three products alone, as ours cuts them. What is left is what the loss costs."""

    def unchanged(logits: Tensor, *_: Tensor, gradient: bool) -> Tensor:  # noqa: ARG001
        return logits[:, 0].float()

    return sum_over_tokens(unchanged, batch.hidden.flatten(0, 1), batch.head)


CASES: Mapping[str, Callable[[], Loss]] = {
    DENSE_CE: dense_cross_entropy,
    CE: lambda: cross_entropy,
    "CE, Liger": liger,
    "the products of CE alone": lambda: products,
    DENSE_KL: lambda: dense_divergence,
    "KL, ours, live teacher": lambda: divergence,
    GIVEN: lambda: top_k,
    f"top {TOP} Bucket, ours, live teacher": lambda: partial(top_k, live=True),
    f"top {TOP} Renormalized, ours, teacher's top given": lambda: partial(top_k, tail="Renormalized"),
}


# --- the truth, in float64, logits whole


def exact(name: str, batch: Batch) -> Tensor:
    """What a case should be, of float32 weights and hidden states; the teacher as the case sees it."""
    own = batch.hidden.double().flatten(0, 1) @ batch.head.weight.double().t()
    predicted = batch.targets != IGNORED
    if name.startswith("CE"):
        return F.cross_entropy(own, batch.targets, ignore_index=IGNORED, reduction="sum")
    log_own = (own / TEMPERATURE).log_softmax(-1)
    if name.startswith("KL"):
        goal = batch.teacher_head(batch.teacher_hidden).double().flatten(0, 1)
        log_goal = (goal / TEMPERATURE).log_softmax(-1)
    else:
        top = batch.top
        tokens = top.tokens.flatten(0, 1)
        log_goal = top.logits.double().flatten(0, 1) / TEMPERATURE
        taken = log_own.gather(-1, tokens)
        if "Renormalized" in name:
            log_goal, log_own = log_goal.log_softmax(-1), taken.log_softmax(-1)
        else:
            log_goal = log_goal - top.log_normaliser.double().flatten()[:, None]
            rest = torch.log1p(-log_goal.exp().sum(-1, keepdim=True))
            others = log_own.scatter(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
            log_goal, log_own = torch.cat((log_goal, rest), -1), torch.cat((taken, others), -1)
    each = (log_goal.exp() * (log_goal - log_own)).sum(-1)
    return torch.where(predicted, each, 0.0).sum() * TEMPERATURE**2
