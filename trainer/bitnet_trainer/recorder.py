"""Each step's figures on their way out: from the device to metrics.jsonl, to the reporter and to the log."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from bitnet_crds.plan import Plan, PlannedPhase
from bitnet_crds.protocol import ObjectiveProgress, TrainerState
from bitnet_trainer.guards import check_skips
from bitnet_trainer.readback import Readback
from bitnet_trainer.report import MetricsLog, Reporter, StepRecord

_log = logging.getLogger(__name__)

_LOGGED_EVERY_SECONDS = 5


@dataclass(frozen=True)
class StepTaken:
    """A step whose figures are still on the device."""

    step: int
    """Steps completed with this one."""
    phase: PlannedPhase
    weights: Mapping[str, float]
    """By objective: the factors of the total loss, as they were in this step."""
    objectives: tuple[str, ...]
    """Those that ran, in the order of their figures."""
    learning_rate: float
    quantization_lambda: float
    mixture: Mapping[str, float]
    """Share by source."""
    tokens_per_second: float | None


class Recorder:
    """Takes figures in, and gives them out as they arrive."""

    def __init__(
        self,
        reporter: Reporter,
        metrics: MetricsLog | None,
        plan: Plan,
        *,
        world: int,
        allowed_skips: int,
        skipped: int,
        in_row: int,
    ) -> None:
        """
        Args:
            reporter: told of each step.
            metrics: where a line a step goes, on the rank that has it.
            plan: the ledger.
            world: ranks.
            allowed_skips: steps in a row that may be left out.
            skipped: steps left out before.
            in_row: how many of them were the last ones.
        """
        self.skipped, self.in_row = skipped, in_row
        self._reporter, self._metrics, self._plan, self._world = reporter, metrics, plan, world
        self._allowed_skips = allowed_skips
        self._readback: Readback[StepTaken] = Readback()
        self._last_logged = 0.0

    def push(self, taken: StepTaken, values: torch.Tensor) -> None:
        """Takes a step's figures in, as `StepLosses.values` holds them."""
        self._readback.push(taken, values)

    def publish(self, wait: bool = False) -> None:
        """Gives out what has arrived; with `wait` all. Raises NonFinite after too many skips in a row."""
        for taken, values in self._readback.arrived(wait):
            loss, norm, skipped, in_row, longest = values[:5]
            good = int(skipped) == self.skipped
            self.skipped, self.in_row = int(skipped), int(in_row)
            self._publish(self._record(taken, loss, norm, values[5:], good=good))
            check_skips(int(longest), self._allowed_skips, taken.step)

    def close(self) -> None:
        """Closes the metrics' file."""
        if self._metrics is not None:
            self._metrics.close()

    def _record(
        self, taken: StepTaken, loss: float, norm: float, means: list[float], *, good: bool
    ) -> StepRecord:
        objectives = {
            name: ObjectiveProgress(raw=raw, weight=taken.weights[name], weighted=raw * taken.weights[name])
            for name, raw in zip(taken.objectives, means, strict=True)
            if good
        }
        return StepRecord(
            step=taken.step,
            phase=taken.phase.name,
            loss=loss if good else None,
            objectives=objectives,
            gradient_norm=norm if good else None,
            learning_rate=taken.learning_rate,
            quantization_lambda=taken.quantization_lambda,
            tokens=taken.step * self._plan.tokens_per_step,
            tokens_per_second=taken.tokens_per_second,
            skipped_steps=self.skipped,
            micro_batch_size=taken.phase.shape.micro_batch_size,
            accumulation=taken.phase.shape.accumulation,
            world_size=self._world,
            teacher=taken.phase.teacher,
            mixture=dict(taken.mixture),
        )

    def _publish(self, record: StepRecord) -> None:
        if self._metrics is not None:
            self._metrics.append(record)
        fields = record.model_dump(exclude={"teacher", "loss", "objectives", "gradient_norm"})
        if record.loss is not None:
            fields |= {"loss": record.loss, "gradient_norm": record.gradient_norm}
            fields["objectives"] = dict(record.objectives)
        self._reporter.update(state=TrainerState.TRAINING, **fields)
        if record.loss is None:
            _log.warning("step %d was left out: its loss or gradient was not finite", record.step)
        elif (
            time.monotonic() - self._last_logged > _LOGGED_EVERY_SECONDS
            or record.step == self._plan.total_steps
        ):
            self._last_logged = time.monotonic()
            _log.info(
                "step %d/%d %s loss %.4f norm %.3f rate %.2e lambda %.2f, %.0f tokens/s",
                record.step,
                self._plan.total_steps,
                record.phase,
                record.loss,
                record.gradient_norm,
                record.learning_rate,
                record.quantization_lambda,
                record.tokens_per_second or 0,
            )
