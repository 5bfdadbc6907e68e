"""One optimiser step: passes over the micro batches, clipping, the guard, the update."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from bitnet_trainer.batch import Rows
from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.manager import (
    HEAD_READERS,
    ObjectiveLoss,
    ObjectiveManager,
    WeightedLoss,
    add_up,
)
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.optim import MuonClip, clip_in_update, total_norm
from bitnet_trainer.quantization.kept_codes import codes_kept
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.teacher import Teacher


@dataclass(frozen=True)
class StepInput:
    """What one rank's share of a step is made of."""

    micro_batches: Sequence[Rows]
    """On the CPU, (B, S) each."""
    objectives: ObjectiveManager
    counts: Mapping[str, int]
    """Terms of each objective in the whole step, over all ranks."""
    teacher: Teacher | None
    """Loaded, where this phase has one."""


@dataclass(frozen=True)
class StepLosses:
    """What a step measured, over all ranks. Its tensor stays on the device: reading it is a sync."""

    objectives: tuple[str, ...]
    values: torch.Tensor
    """(2 + 2 + len(objectives),) float64: total loss, gradient norm, the guard's two counts, and each
    objective's mean loss a term; with MuonClip two more, its `attention_figures`."""


@dataclass(frozen=True)
class Stepper:
    """The parts that a step works on."""

    model: nn.Module
    """The student as a LanguageModel, wrapped in DDP or sharded by FSDP2 where there are several ranks."""
    layers: int
    """How many the student has."""
    optimizer: torch.optim.Optimizer
    guard: NonFiniteGuard
    ranks: Ranks
    gradient_clipping: float
    """Largest L2 norm of the whole gradient."""

    def __call__(self, step: StepInput, weights: Mapping[str, float]) -> StepLosses:
        """Takes one step, every rank with its own micro batches."""
        measured = self._over_ranks(self._backward(step, weights))
        norm = clip_in_update(self.optimizer, self.gradient_clipping)
        self.guard.judge(measured.values[0], norm, self.optimizer)
        self.optimizer.step()
        head = torch.stack((measured.values[0], norm.double()))
        figures = [head, self.guard.counts().double(), measured.values[1:]]
        if isinstance(self.optimizer, MuonClip):
            figures.append(self.optimizer.attention_figures)
        return StepLosses(measured.objectives, torch.cat(figures))

    def gradient_norm(self, step: StepInput, objective: str) -> float:
        """The L2 norm of one objective's gradient over the whole step, unweighted; changes no weight.

        The same on every rank, and however the step is spread over ranks. The host waits for it.
        """
        self._backward(step, {objective: 1.0})
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = float(total_norm(gradients)) if gradients else 0.0
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def rehearse(self, step: StepInput, weights: Mapping[str, float]) -> None:
        """Forward and backward passes of a step, for the memory that they take; nothing of them stays."""
        try:
            self._backward(step, weights)
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def rehearse_update(self) -> None:
        """The optimiser's step as the guard leaves one out: moments that are not there yet are made, with
        nothing in them, and nothing else changes. Every rank calls it."""
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        left_out = torch.ones((), device=self.ranks.device)
        self.optimizer.found_inf = left_out  # type: ignore[attr-defined]  # until the guard judges a step
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _backward(self, step: StepInput, weights: Mapping[str, float]) -> tuple[ObjectiveLoss, ...]:
        """Gradients of the whole step. They are averaged over the ranks, hence the world in normalisers."""
        self.optimizer.zero_grad(set_to_none=True)
        normalisers = {name: count / self.ranks.world for name, count in step.counts.items()}
        capture = step.objectives.capture(weights, self.layers)
        losses = []
        student, passes = self._student, len(step.micro_batches)
        with self._codes_kept(passes):
            for number, rows in enumerate(step.micro_batches, start=1):
                student.begin_pass()
                with self._gradients_kept_local(until_last=number < passes):
                    with autocast(self.ranks.device):
                        batch = MicroBatch(
                            self.model,
                            rows,
                            self.ranks.device,
                            layers=self.layers,
                            teacher=step.teacher,
                            capture=capture,
                        )
                        loss = step.objectives(batch, weights, normalisers)
                        total = loss.total + self._reaching_all(batch, loss)
                    # Not in a thread of autograd's: where the host is waited for that takes a fifth longer.
                    with torch.autograd.set_multithreading_enabled(False):
                        total.backward()  # type: ignore[no-untyped-call]
                losses.append(WeightedLoss(loss.total.detach(), loss.parts))
                if number == 1 < passes:
                    student.keep_gradients()
        return add_up(losses)

    def _reaching_all(self, batch: MicroBatch, loss: WeightedLoss) -> torch.Tensor | float:
        """0, by way of the head where no objective reads it, so that each parameter has a gradient.

        DDP waits for one; and one rank has to do the same, since the optimiser neither decays a parameter
        without a gradient nor has a state of it for the checkpoint.
        """
        if any(part.name in HEAD_READERS for part in loss.parts):
            return 0.0
        return batch.student.head(batch.student.hidden[:, :1]).sum() * 0.0

    @property
    def _student(self) -> LanguageModel:
        wrapped = self.model
        return cast(
            "LanguageModel", wrapped.module if isinstance(wrapped, DistributedDataParallel) else wrapped
        )

    def _codes_kept(self, passes: int) -> AbstractContextManager[None]:
        """Inside, no weight is quantised or gathered twice. A single pass of whole weights does it as fast by
        itself, on the way, but for kernels that do it for all weights at once."""
        student = self._student
        if student.shared is not None:
            return student.shared.codes_kept()
        if isinstance(student, FSDPModule):
            return nullcontext()
        return codes_kept(student.decoder_layers, in_place=student.replayed, only_at_once=passes == 1)

    def _gradients_kept_local(self, until_last: bool) -> AbstractContextManager[None]:
        if until_last and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()

    def _over_ranks(self, parts: Sequence[ObjectiveLoss]) -> StepLosses:
        """Total loss and each objective's mean, (1 + N,), weighted by terms over the ranks."""
        totals = torch.stack([part.loss.total.double() for part in parts])
        counts = torch.stack([part.loss.tokens.double() for part in parts])
        both = torch.cat((totals, counts))
        if self.ranks.world > 1:
            dist.all_reduce(both)
        means = both[: len(parts)] / both[len(parts) :].clamp(min=1)
        # Weights stay Python numbers: a tensor made of them would be a copy that the host waits for.
        total = torch.stack([part.weight * mean for part, mean in zip(parts, means, strict=True)]).sum()
        return StepLosses(tuple(part.name for part in parts), torch.cat((total.reshape(1), means)))


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 products on CUDA; on the CPU everything stays float32."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()
