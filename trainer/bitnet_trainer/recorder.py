"""Each step's figures on their way out: from the device to metrics.jsonl, to the reporter and to the log."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from bitnet_crds.plan import PlannedPhase
from bitnet_crds.protocol import Checkpoint, ObjectiveProgress, Order, TrainerState
from bitnet_trainer.batch import SequenceId
from bitnet_trainer.loss_curve import LossCurve, window_of
from bitnet_trainer.machine import Machine
from bitnet_trainer.readback import Readback
from bitnet_trainer.report import MetricsLog, Reporter, StepRecord
from bitnet_trainer.skipped import NonFiniteRecord, SkippedStep, not_finite, stretches
from bitnet_trainer.spikes import SpikeDetector
from bitnet_trainer.tracking import Tracker

_log = logging.getLogger(__name__)

_LOGGED_EVERY_SECONDS = 5


@dataclass(frozen=True)
class StepTaken:
    """A step whose figures are still on the device."""

    step: int
    """Steps completed with this one."""
    phase: PlannedPhase
    sequences: Sequence[SequenceId]
    """Those of all ranks. Kept until the figures arrive, and longer where the step was left out."""
    weights: Mapping[str, float]
    """By objective: the factors of the total loss, as they were in this step."""
    objectives: tuple[str, ...]
    """Those that ran, in the order of their figures."""
    learning_rate: float
    quantization_lambda: float
    mixture: Mapping[str, float]
    """Share by source."""
    tokens_per_second: float | None
    allowed_skips: int
    """Steps in a row that may be left out, as it holds in this one."""


class Recorder:
    """Takes figures in, and gives them out as they arrive."""

    def __init__(
        self,
        reporter: Reporter,
        metrics: MetricsLog | None,
        order: Order,
        last_checkpoint: Callable[[], Checkpoint | None],
        machine: Machine,
        tracker: Tracker | None,
        *,
        world: int,
        skipped: int,
        in_row: int,
    ) -> None:
        """
        Args:
            reporter: told of each step.
            metrics: where a line a step goes, on the rank that has it.
            order: the run.
            last_checkpoint: asked for the newest checkpoint once, where the run ends because of bad steps.
            machine: what is trained on.
            tracker: told of each step too, on the rank that has one.
            world: ranks.
            skipped: steps left out before.
            in_row: how many of them were the last ones.
        """
        self.skipped, self.in_row = skipped, in_row
        self._reporter, self._metrics, self._world = reporter, metrics, world
        self._order, self._plan = order, order.plan
        self._sources = [source.name for source in order.spec.data.sources]
        self._last_checkpoint, self._machine, self._tracker = last_checkpoint, machine, tracker
        optimizer = order.spec.optimizer
        self._muon_rate = optimizer.muon_rate if optimizer.name == "MuonClip" else None
        self._left_out: list[SkippedStep] = []
        recorded = [] if metrics is None else metrics.recorded()
        self._spikes = SpikeDetector(
            (record.step, record.phase, record.loss) for record in recorded if record.loss is not None
        )
        self._curve = self._watched(recorded)
        reporter.update(**self._remembered())
        self._readback: Readback[StepTaken] = Readback()
        self._last_logged = 0.0

    def _watched(self, recorded: Sequence[StepRecord]) -> LossCurve | None:
        """The loss as far as it is recorded; None where nobody watches for a plateau."""
        plateau = self._order.spec.health.plateau
        if plateau is None:
            return None
        first_steps = {phase.name: phase.first_step for phase in self._plan.phases}
        curve = LossCurve(window_of(self._plan, plateau.window_tokens), first_steps)
        return curve.show((record.step, record.phase, record.loss) for record in recorded)

    def _remembered(self) -> Mapping[str, object]:
        """What of the progress more steps than the last one decide."""
        curve = () if self._curve is None else self._curve.points
        return {
            "loss_spikes": self._spikes.count,
            "last_loss_spike": self._spikes.last,
            "loss_curve": curve,
        }

    def push(self, taken: StepTaken, values: torch.Tensor) -> None:
        """Takes a step's figures in, as `StepLosses.values` holds them."""
        self._readback.push(taken, values)

    def publish(self, wait: bool = False) -> None:
        """Gives out what has arrived; with `wait` all. Raises NonFinite after too many skips in a row."""
        for taken, values in self._readback.arrived(wait):
            loss, norm, skipped, in_row = values[:4]
            good = int(skipped) == self.skipped
            self.skipped, self.in_row = int(skipped), int(in_row)
            record = self._record(taken, loss, norm, values[4:], good=good)
            self._publish(record)
            self._check_skips(record, taken.allowed_skips)

    def _check_skips(self, record: StepRecord, allowed: int) -> None:
        """Raises NonFinite, and writes down why, where one more step in a row than may be was left out."""
        if record.left_out is None:
            self._left_out.clear()
            return
        self._left_out.append(record.left_out)
        if self.in_row > allowed:
            ended = NonFiniteRecord(steps=tuple(self._left_out), checkpoint=self._last_checkpoint())
            if self._metrics is not None:
                ended.write(self._order.folder)
            raise ended.error(self.in_row, allowed)

    def close(self) -> None:
        """Closes the metrics' file."""
        if self._metrics is not None:
            self._metrics.close()

    def _record(
        self, taken: StepTaken, loss: float, norm: float, figures: list[float], *, good: bool
    ) -> StepRecord:
        # With MuonClip two figures follow, of the attention.
        means, attention = figures[: len(taken.objectives)], figures[len(taken.objectives) :]
        largest, clipped = attention or (math.nan, math.nan)
        share = self._plan.learning_rate.share_at(taken.step - 1)
        objectives = {
            name: ObjectiveProgress(raw=raw, weight=taken.weights[name], weighted=raw * taken.weights[name])
            for name, raw in zip(taken.objectives, means, strict=True)
            if good
        }
        return StepRecord(
            step=taken.step,
            phase=taken.phase.name,
            loss=loss if good else None,
            loss_spike=self._spikes.judge(taken.step, taken.phase.name, loss) if good else None,
            left_out=None if good else self._skipped_step(taken, loss, norm, means),
            objectives=objectives,
            gradient_norm=norm if good else None,
            largest_attention_logit=largest if math.isfinite(largest) else None,
            clipped_heads=int(clipped) if attention else None,
            learning_rate=taken.learning_rate,
            muon_learning_rate=self._muon_rate and self._muon_rate * share,
            quantization_lambda=taken.quantization_lambda,
            tokens=taken.step * self._plan.tokens_per_step,
            tokens_per_second=taken.tokens_per_second,
            skipped_steps=self.skipped,
            micro_batch_size=taken.phase.shape.micro_batch_size,
            accumulation=taken.phase.shape.accumulation,
            world_size=self._world,
            teacher=taken.phase.teacher,
            mixture=dict(taken.mixture),
            machine=self._machine.figures(taken.tokens_per_second, taken.objectives),
        )

    def _skipped_step(self, taken: StepTaken, loss: float, norm: float, means: list[float]) -> SkippedStep:
        return SkippedStep(
            step=taken.step,
            phase=taken.phase.name,
            not_finite=not_finite(loss, norm, zip(taken.objectives, means, strict=True)),
            sequences=stretches(taken.sequences, self._sources),
        )

    def _publish(self, record: StepRecord) -> None:
        if self._metrics is not None:
            self._metrics.append(record)
        if self._tracker is not None:
            self._tracker.log(record)
        if record.loss_spike is not None:
            _log.warning(
                "step %d: the loss of %.4f is a spike, %.1f robust standard deviations above those before it",
                record.step,
                record.loss,
                record.loss_spike,
            )
        fields = record.model_dump(
            exclude={"teacher", "loss", "loss_spike", "left_out", "objectives", "gradient_norm", "machine"}
        )
        if self._curve is not None:
            self._curve.add(record.step, record.phase, record.loss)
        fields |= self._remembered()
        if record.loss is not None:
            fields |= {"loss": record.loss, "gradient_norm": record.gradient_norm}
            fields["objectives"] = dict(record.objectives)
        fields["machine"] = record.machine
        self._reporter.update(state=TrainerState.TRAINING, **fields)
        if record.left_out is not None:
            _log.warning("left out, with nothing of it kept: %s", record.left_out.sentence())
        elif (
            time.monotonic() - self._last_logged > _LOGGED_EVERY_SECONDS or record.step == self._plan.end_step
        ):
            self._last_logged = time.monotonic()
            _log.info(
                "step %d/%d %s loss %.4f norm %.3f rate %.2e lambda %.2f, %.0f tokens/s",
                record.step,
                self._plan.end_step,
                record.phase,
                record.loss,
                record.gradient_norm,
                record.learning_rate,
                record.quantization_lambda,
                record.tokens_per_second or 0,
            )
