"""One optimiser step: passes over the micro batches, clipping, the guard, the update."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.objectives.manager import ObjectiveLoss, ObjectiveManager, WeightedLoss, add_up
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.teacher import Teacher


@dataclass(frozen=True)
class StepLosses:
    """What a step measured, over all ranks. Its tensor stays on the device: reading it is a sync."""

    objectives: tuple[str, ...]
    values: torch.Tensor
    """(2 + 3 + len(objectives),) float64: total loss, gradient norm, the guard's three counts, and each
    objective's mean loss a token."""


@dataclass(frozen=True)
class Stepper:
    """The parts that a step works on."""

    model: nn.Module
    """The student, wrapped in DDP where there are several ranks."""
    optimizer: torch.optim.Optimizer
    guard: NonFiniteGuard
    ranks: Ranks
    gradient_clipping: float
    """Largest L2 norm of the whole gradient."""

    def __call__(
        self,
        micro_batches: Sequence[torch.Tensor],
        objectives: ObjectiveManager,
        weights: Mapping[str, float],
        teacher: Teacher | None,
        tokens: int,
    ) -> StepLosses:
        """Takes one step, every rank with its own micro batches (B, S) of token ids, on the CPU.

        `tokens` is what the whole step predicts, over all ranks: each of them weighs the same, which a mean
        of the micro batches' means would not give. DDP averages gradients over the ranks, hence the world.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for number, input_ids in enumerate(micro_batches, start=1):
            with self._gradients_kept_local(until_last=number < len(micro_batches)):
                with autocast(self.ranks.device):
                    batch = MicroBatch(self.model, self._on_device(input_ids), teacher=teacher)
                    loss = objectives(batch, weights, tokens / self.ranks.world)
                loss.total.backward()  # type: ignore[no-untyped-call]
            losses.append(WeightedLoss(loss.total.detach(), loss.parts))
        measured = self._over_ranks(add_up(losses))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clipping)
        self.guard.judge(measured.values[0], norm, self.optimizer)
        self.optimizer.step()
        head = torch.stack((measured.values[0], norm.double()))
        return StepLosses(
            measured.objectives, torch.cat((head, self.guard.counts().double(), measured.values[1:]))
        )

    def _on_device(self, input_ids: torch.Tensor) -> torch.Tensor:
        if self.ranks.device.type != "cuda":
            return input_ids
        # From memory that is not pinned the host would wait for all kernels before the copy, and for ever
        # for a collective whose other rank has died.
        return input_ids.pin_memory().to(self.ranks.device, non_blocking=True)

    def _gradients_kept_local(self, until_last: bool) -> AbstractContextManager[None]:
        if until_last and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()

    def _over_ranks(self, parts: Sequence[ObjectiveLoss]) -> StepLosses:
        """Total loss and each objective's mean, (1 + N,), token-weighted over the ranks."""
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
