"""The training loop: takes a run's steps by the ledger, to where its pods end or to a request to stop."""

import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch.distributed.fsdp import FSDPModule

from bitnet_crds.machines import micro_batch_of
from bitnet_crds.plan import PlannedPhase
from bitnet_crds.protocol import Checkpoint, Order, TeacherState, Told, TrainerState
from bitnet_trainer.checkpoint.saver import Saver
from bitnet_trainer.checkpoint.state import Position
from bitnet_trainer.data import Corpus, Cursor, LabelledCorpus, Prefetch, Wanted
from bitnet_trainer.errors import CheckpointError, TeacherUnavailable
from bitnet_trainer.fitting import Fitting
from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.machine import Machine
from bitnet_trainer.measured_shares import measured_shares
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.gradient_ratio import balanced, is_due, measured_ratios
from bitnet_trainer.optim import WeightAverage, set_learning_rate
from bitnet_trainer.outcome import reported
from bitnet_trainer.phases import PhaseObjectives
from bitnet_trainer.quantization.warmup import has_lambda, set_lambda
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.readback import Speedometer
from bitnet_trainer.recorder import Recorder, StepTaken
from bitnet_trainer.report import MetricsLog, Reporter
from bitnet_trainer.setup import replayable, wrapped
from bitnet_trainer.step import StepInput, Stepper
from bitnet_trainer.stop import StopRequest
from bitnet_trainer.teacher import Teacher, load_together
from bitnet_trainer.told import Settings
from bitnet_trainer.tracking import Tracker

_log = logging.getLogger(__name__)


class TrainingLoop:
    """The steps of one process, from where it begins to where its pods end or a request to stop."""

    def __init__(
        self,
        order: Order,
        reporter: Reporter,
        ranks: Ranks,
        saver: Saver,
        corpus: Corpus | LabelledCorpus,
        student: LanguageModel,
        objectives: Mapping[str, PhaseObjectives],
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
        teacher: Teacher | None,
        position: Position,
        tracker: Tracker | None = None,
    ) -> None:
        self.order, self.reporter, self.ranks = order, reporter, ranks
        self.saver, self.corpus, self.optimizer = saver, corpus, optimizer
        self.student, self.objectives, self.average = student, objectives, average
        self.teacher, self.begun_at = teacher, position
        self.step = self.checkpointed = self.committed = position.step
        self.end = order.plan.pods_end(position.step)
        self.unkept: CheckpointError | None = None
        self.settings = Settings.of(order, Told())
        self.heard: deque[Told] = deque(maxlen=1)
        """What the first rank was told and the ranks did not yet take up; another thread may add it."""
        self.cursor = Cursor(position.consumed, position.origin)
        self.shares, self.ratios, self.rewards = position.mixture, position.balance, position.rewards
        self.prefetch = Prefetch(corpus, order.plan.global_batch_size, ranks.rank, ranks.world)
        self.stepper = Stepper(
            model=wrapped(student, ranks),
            layers=student.layers,
            optimizer=optimizer,
            guard=NonFiniteGuard(ranks.device, position.skipped_steps, position.skipped_in_row),
            ranks=ranks,
            gradient_clipping=order.spec.optimizer.gradient_clipping,
        )
        self.quantized, self.begun_phase = has_lambda(student), ""
        self.speed = Speedometer(order.plan.tokens_per_step)
        self.recorder = Recorder(
            reporter,
            MetricsLog(order.folder / "metrics.jsonl", position.step) if ranks.first else None,
            order,
            self._last_checkpoint,
            Machine.of(student.model, ranks, order.plan),
            tracker,
            world=ranks.world,
            skipped=position.skipped_steps,
            in_row=position.skipped_in_row,
        )

    def run(self, stop: StopRequest) -> bool:
        """Takes the steps. False where it stopped before the end because it was asked to.

        Raises CheckpointError where a phase of other pods comes next, and they would have none to go on from.
        """
        plan = self.order.plan
        self.student.train()
        self.speed.restart()
        if self.order.spec.data.mixture.policy == "Static":
            # A phase that was cut short just here still had its shares when the checkpoint was written.
            self._mixture_of_next_step()
        while self.step < self.end:
            phase = self.order.plan.phase_at(self.step)
            self._teacher_as_planned(phase)
            # First, since passes take more memory where lambda is below 1, and it never falls.
            lam = self._set_lambda()
            if phase.name != self.begun_phase:
                phase = self._begin_phase(phase, stop)
            rows = self.prefetch.take(self._wanted(self.step, self.cursor))
            if self.step + 1 < self.end:
                # Most likely: shares that change in between make these rows useless, and nothing worse.
                self.prefetch.ahead(self._wanted(self.step + 1, rows.after))
            objectives, weights = self.objectives[phase.name].manager, plan.weights_at(self.step)
            counts = objectives.count(rows.micro_batches, weights)
            *totals, settled, stops, told = self.ranks.total(
                *counts.values(), int(self.saver.settled), int(stop.requested), len(self.heard)
            )
            if settled == self.ranks.world:
                self._take_up_checkpoint()
            if told:
                self._take_up_told()
            if stops:
                stop.requested = True
                self._save(wait=True)
                return False

            rate = plan.learning_rate.at(self.step)
            set_learning_rate(self.optimizer, plan.learning_rate.share_at(self.step))
            teacher = self.teacher if phase.teacher else None
            totals_of = dict(zip(counts, totals, strict=True))
            step = StepInput(rows.micro_batches, objectives, totals_of, teacher)
            weights = self._balanced(phase, weights, step)
            begun = time.monotonic()
            losses = self.stepper(step, weights)
            if self.step == self.begun_at.step:
                took = time.monotonic() - begun
                _log.info("the first step had the host work for %.1f s, compiling included", took)
            self.step += 1
            if self.average is not None:
                self.average.update(self.step, self.stepper.guard.left_out)
            self.cursor = rows.after
            self.recorder.push(
                StepTaken(
                    step=self.step,
                    phase=phase,
                    sequences=rows.batch,
                    weights=weights,
                    objectives=losses.objectives,
                    learning_rate=rate,
                    quantization_lambda=lam,
                    mixture=self._mixture(),
                    tokens_per_second=self.speed.step(),
                    allowed_skips=self.settings.skip_steps,
                ),
                losses.values,
            )
            self.recorder.publish()
            self._mixture_of_next_step()
            if self.step % self.settings.every_steps == 0:
                self._save()
        self._save(wait=True)
        if self.committed < self.step < plan.end_step:
            raise CheckpointError(
                f"checkpoint.uri: there is no checkpoint of step {self.step}, where phase "
                f"{plan.phase_at(self.step - 1).name!r} ends: {self.reporter.progress.checkpoint_error} The "
                "next phase trains in other pods, and they have nothing to go on from.",
                transient=self.unkept is not None and self.unkept.transient,
            )
        return True

    def close(self) -> None:
        """Ends the threads that make rows and write checkpoints, and closes the metrics' file."""
        self.prefetch.close()
        self._last_checkpoint()
        self.recorder.close()

    def _last_checkpoint(self) -> Checkpoint | None:
        """The newest one where an error ends the run; none is begun after it.

        One may be in flight, and is as good as if there were no error.
        """
        committed = self.saver.close()
        if committed is not None:
            self.reporter.update(checkpoint=reported(self.order, committed))
        return self.reporter.progress.checkpoint

    def _take_up_told(self) -> None:
        """What the first rank was told holds from this step on, on every rank."""
        told = self.ranks.from_first(self.heard.pop() if self.heard else None)
        self.settings = Settings.of(self.order, told)
        self.saver.keep(self.settings.keep)
        _log.info("from step %d on, as told: %s", self.step, self.settings)

    def _wanted(self, step: int, cursor: Cursor) -> Wanted:
        plan = self.order.plan
        micro_batch_size = plan.phase_at(step).shape.micro_batch_size
        return Wanted(cursor, self.shares, micro_batch_size, plan.passed_over_before(step))

    def _set_lambda(self) -> float:
        """The step's lambda, which is set; 0 of a model that is not quantised."""
        if not self.quantized:
            return 0.0
        lam = self.order.plan.quantization_lambda.at(self.step)
        set_lambda(self.student, lam)
        return lam

    def _teacher_as_planned(self, phase: PlannedPhase) -> None:
        """Loads the teacher for a phase that needs it, and frees it in one that does not."""
        if self.teacher is None or phase.teacher == (self.teacher.state is TeacherState.READY):
            return
        if not phase.teacher:
            self.teacher.unload()
        else:
            _log.info("loading the teacher for phase %s at step %d", phase.name, self.step)
            self.reporter.update(teacher=TeacherState.LOADING)
            try:
                load_together(self.teacher, self.ranks)
            except TeacherUnavailable:
                # On every rank alike. What was trained up to here is there when the teacher can be had.
                self._save(wait=True)
                raise
            self.speed.restart()
        self.reporter.update(teacher=self.teacher.state)

    def _begin_phase(self, phase: PlannedPhase, stop: StopRequest) -> PlannedPhase:
        """The phase, its teacher being there, with the micro batch that it is trained with, and layers that
        are replayed where they may be and graphs have room; as it was where a rank was asked to stop."""
        self.begun_phase = phase.name
        replayed = self.student.compiled and replayable(self.order.spec, self.ranks.world)
        asked = micro_batch_of(self.order.spec, self.order.plan.phases.index(phase))
        # An earlier process may have found the size; how much memory that leaves this one has yet to see.
        if phase.auto or (replayed and asked == "Auto"):
            fitting = self._fitted(phase, stop)
            if fitting is None:
                return phase
            replayed = replayed and fitting.roomy
            if phase.auto:
                phase = self._take_up_micro_batch(phase, fitting.found)
        self.student.replay(replayed)
        if self.student.compiled:
            _log.info("layers of phase %s are %sreplayed", phase.name, "" if replayed else "not ")
        return phase

    def _fitted(self, phase: PlannedPhase, stop: StopRequest) -> Fitting | None:
        """What tried the phase's sizes, or the one that is known; None where a rank was asked to stop."""
        # An error then says the step that it happened in.
        self.recorder.publish(wait=True)
        self.student.replay(False)
        _log.info("trying what micro batch of phase %s fits", phase.name)
        fitting = Fitting(
            replace(self.stepper, model=self.student),
            phase,
            self.order.plan.weights_at(phase.first_step),
            self.objectives[phase.name].manager,
            self.teacher if phase.teacher else None,
            self.corpus.made_up,
            stop,
            sharded=isinstance(self.student, FSDPModule),
        )
        try:
            if not fitting.search(None if phase.auto else phase.shape.micro_batch_size):
                return None
        except torch.OutOfMemoryError:
            # It was foreseen otherwise, and would be again. What was known already says its own.
            if phase.auto:
                self._take_up_micro_batch(phase, fitting.found)
            raise
        self.speed.restart()
        return fitting

    def _take_up_micro_batch(self, phase: PlannedPhase, size: int) -> PlannedPhase:
        """The ledger has it from here on, and so has whoever plans the next segment."""
        _log.info("phase %s has micro batches of %d", phase.name, size)
        found = {phase.name: size}
        self.order = self.order.model_copy(update={"plan": self.order.plan.fitted(found)})
        fitted = self.order.plan.phase_at(self.step)
        self.reporter.update(
            micro_batches={**self.reporter.progress.micro_batches, **found},
            micro_batch_size=fitted.shape.micro_batch_size,
            accumulation=fitted.shape.accumulation,
        )
        return fitted

    def _mixture_of_next_step(self) -> None:
        """Takes up the shares of a phase that begins, or those that a policy measures.

        At the end of a step, and not before one: a checkpoint then holds what comes next, and a run that goes
        on from it measures nothing twice.
        """
        shares = self.shares
        policy = self.order.spec.data.mixture
        if policy.policy == "Static":
            shares = tuple(self.order.plan.phase_at(self.step).mixture.values())
        elif self.step % policy.measured_every == 0 and self.step < self.order.plan.end_step:
            shares, self.rewards = measured_shares(
                self.order,
                self.step,
                self.shares,
                self.rewards,
                student=self.student,
                corpus=self.corpus,
                cursor=self.cursor,
                ranks=self.ranks,
            )
        if shares != self.shares:
            # The new shares hold from here on, and make up for nothing that the old ones did.
            self.shares, self.cursor = shares, self.cursor.rebased()

    def _balanced(self, phase: PlannedPhase, weights: dict[str, float], step: StepInput) -> dict[str, float]:
        """The weights with those found by measuring where the phase asks for it."""
        weighted = {name for name, weight in weights.items() if weight > 0}
        names = self.objectives[phase.name].balanced & weighted
        if not names:
            return weights
        if is_due(self.step - phase.first_step):
            norm_of = partial(self.stepper.gradient_norm, step)
            self.ratios = measured_ratios(names, norm_of, self.ratios)
        return balanced(weights, names, self.ratios)

    def _mixture(self) -> dict[str, float]:
        names = (source.name for source in self.order.spec.data.sources)
        return {name: share / sum(self.shares) for name, share in zip(names, self.shares, strict=True)}

    def _save(self, wait: bool = False) -> None:
        """Begins a checkpoint of the step reached, unless that step has one; with `wait` it is committed."""
        self.recorder.publish(wait=True)
        if self.checkpointed != self.step:
            self.reporter.update(state=TrainerState.CHECKPOINTING)
            self._take_up_checkpoint()
            self.saver.begin(self._position())
            self.checkpointed = self.step
        if wait:
            self._take_up_checkpoint()
        self.reporter.update(state=TrainerState.TRAINING)
        self.speed.restart()

    def _take_up_checkpoint(self) -> None:
        """Waits for the checkpoint in flight, if one is, and reports it."""
        if not self.saver.in_flight:
            return
        try:
            committed = self.saver.outcome()
        except CheckpointError as error:
            # On every rank alike, and at the same step.
            self.unkept = error
            self._without_checkpoint(error)
            return
        self.committed = committed.step
        self.reporter.update(
            checkpoint=reported(self.order, committed),
            checkpoint_at=time.time(),
            checkpoint_seconds=self.saver.seconds,
            checkpoint_error=None,
        )

    def _without_checkpoint(self, error: CheckpointError) -> None:
        """Ends the run where its checkpoints are required."""
        if self.settings.required:
            back = f"go on from step {self.committed}" if self.committed else "begin again"
            raise CheckpointError(
                f"{error} The run ends here, and would {back}.", transient=error.transient
            ) from error
        since = f"since step {self.committed}" if self.committed else "so far"
        message = (
            f"{error} Training goes on, and the next checkpoint tries again: what was trained {since} is "
            "kept nowhere yet."
        )
        _log.error("%s", message)
        failures = self.reporter.progress.checkpoint_failures + 1
        self.reporter.update(checkpoint_error=message, checkpoint_failures=failures)

    def _position(self) -> Position:
        return replace(
            self.begun_at,
            step=self.step,
            consumed=self.cursor.consumed,
            origin=self.cursor.origin,
            mixture=self.shares,
            balance=self.ratios,
            rewards=self.rewards,
            skipped_steps=self.recorder.skipped,
            skipped_in_row=self.recorder.in_row,
            world_size=self.ranks.world,
            rollbacks=len(self.order.plan.rollbacks),
        )
