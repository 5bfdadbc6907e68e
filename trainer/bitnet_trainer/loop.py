"""The training loop: sets a run up, takes its steps by the ledger, evaluates and exports."""

import logging
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from bitnet_crds.plan import PlannedPhase
from bitnet_crds.protocol import (
    Evaluation,
    ObjectiveProgress,
    Order,
    TeacherState,
    TrainerState,
)
from bitnet_trainer import checkpoint
from bitnet_trainer.checkpoint import CheckpointStore, Position
from bitnet_trainer.data import Corpus, Cursor
from bitnet_trainer.finish import (
    evaluated_sequences,
    evaluation,
    measure,
    measure_baseline,
    measure_teacher,
    write_artifacts,
)
from bitnet_trainer.guards import NonFiniteGuard, check_skips
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.load import load_model
from bitnet_trainer.objectives.manager import ObjectiveManager, objectives_of
from bitnet_trainer.objectives.token_loss import count_targets
from bitnet_trainer.optim import build_adamw, set_learning_rate
from bitnet_trainer.outcome import reported
from bitnet_trainer.quantization.warmup import set_lambda
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.readback import Readback, Speedometer
from bitnet_trainer.report import MetricsLog, Reporter, StepRecord
from bitnet_trainer.setup import (
    check_vocabulary,
    check_world,
    known_baseline,
    open_run_corpus,
    planned_teacher,
    teacher_is_the_original,
    wrapped,
    write_record,
)
from bitnet_trainer.step import Stepper
from bitnet_trainer.stop import StopRequest
from bitnet_trainer.teacher import Teacher

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """How training ended."""

    stopped: bool
    """Whether it was asked to stop, and did, with a checkpoint."""
    message: str
    evaluation: Evaluation | None = None
    artifacts: Mapping[str, str] = field(default_factory=dict)


def train(order: Order, reporter: Reporter, stop: StopRequest) -> Result:
    """Trains a run to its end, or until `stop` is requested, going on from its newest checkpoint.

    Every rank calls it, in a process that torchrun's environment variables describe. Raises the errors of
    `bitnet_trainer.errors`.
    """
    spec, plan = order.spec, order.plan
    ranks = Ranks.join(spec.workers.gpus_per_worker)
    check_world(plan.phases, ranks.world)
    torch.manual_seed(spec.seed + ranks.rank)

    store = CheckpointStore(order.folder / "checkpoints", spec.checkpoint.keep)
    if ranks.first:
        store.prepare()
    ranks.wait()

    reporter.update(state=TrainerState.LOADING_MODEL, world_size=ranks.world)
    loaded = load_model(spec.model.from_, spec.model.revision)
    conversion = convert(loaded.model)
    _log.info("%d linears became BitLinears; %s stay", len(conversion.converted), ", ".join(conversion.left))
    # The cast is for mypy alone: transformers decorates `to` so that it loses its type.
    student: nn.Module = loaded.model
    student.to(ranks.device)

    reporter.update(state=TrainerState.PREPARING_DATA)
    corpus = open_run_corpus(order, loaded.tokenizer, ranks)
    check_vocabulary(corpus, loaded)
    fingerprint = corpus.fingerprint()
    held_out = corpus.held_out(evaluated_sequences(ranks.device, plan.sequence_length))
    evaluation_batch = plan.phases[-1].shape.micro_batch_size

    # A run that may not go on is refused before it costs anything, or writes over what the other one left.
    start = Cursor.at_start(len(corpus.sources))
    position = Position(0, start.consumed, 0, order.training_hash, fingerprint, 0)
    found = ranks.from_first(checkpoint.newest_sound(store) if ranks.first else None)
    if found is not None:
        position = Position.read(found.path)
        checkpoint.check_position(position, found, order.training_hash, fingerprint)
        reporter.update(
            checkpoint=reported(order, found),
            step=position.step,
            phase=plan.phase_at(position.step).name,
            tokens=position.step * plan.tokens_per_step,
            skipped_steps=position.skipped_steps,
        )

    reporter.update(state=TrainerState.EVALUATING)
    baseline = known_baseline(order, fingerprint, ranks) or measure_baseline(
        student, held_out, evaluation_batch, ranks
    )
    if ranks.first:
        write_record(order, loaded, conversion, fingerprint, baseline)

    optimizer = build_adamw(student, weight_decay=spec.optimizer.weight_decay)
    if found is not None:
        checkpoint.load(found, position, student, optimizer, ranks.control)

    teacher = planned_teacher(order, loaded, ranks.device)
    session = _Session(order, reporter, ranks, store, corpus, student, optimizer, teacher, position)
    with stop.deferred(), closing(session):
        finished = session.run(stop)
    (stops,) = ranks.total(int(stop.requested))
    if not finished or stops:
        return Result(True, f"asked to stop; it goes on from step {session.step}")

    reporter.update(state=TrainerState.EVALUATING)
    set_lambda(student, 1.0)
    after = measure(student, held_out, evaluation_batch, ranks)
    reporter.update(state=TrainerState.EXPORTING)
    artifacts: dict[str, str] = {}
    if ranks.first:
        artifacts = write_artifacts(order.folder, spec, plan, loaded.model, loaded.tokenizer, conversion)
    ranks.wait()

    reporter.update(state=TrainerState.EVALUATING)
    teacher_perplexity: float | None = None
    if teacher is not None and teacher_is_the_original(order):
        teacher_perplexity = baseline.original
    elif teacher is not None:
        teacher_perplexity = measure_teacher(teacher, held_out, evaluation_batch, ranks)
    evaluated = evaluation(baseline, after, teacher_perplexity)
    reporter.update(state=TrainerState.FINISHED)
    return Result(
        False,
        f"trained {plan.total_steps} steps, {plan.tokens:,} tokens; held-out perplexity "
        f"{evaluated.perplexity_original} as published, {evaluated.perplexity_before} quantised untrained, "
        f"{evaluated.perplexity_after} trained",
        evaluated,
        artifacts,
    )


class _Session:
    """The steps of one process, from where it begins to the run's end or a request to stop."""

    def __init__(
        self,
        order: Order,
        reporter: Reporter,
        ranks: Ranks,
        store: CheckpointStore,
        corpus: Corpus,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
        teacher: Teacher | None,
        position: Position,
    ) -> None:
        self.order, self.reporter, self.ranks = order, reporter, ranks
        self.store, self.corpus, self.student, self.optimizer = store, corpus, student, optimizer
        self.teacher, self.begun_at = teacher, position
        self.step = self.checkpointed = position.step
        self.cursor = Cursor(position.consumed)
        self.skipped = position.skipped_steps
        self.stepper = Stepper(
            model=wrapped(student, ranks),
            optimizer=optimizer,
            guard=NonFiniteGuard(ranks.device, position.skipped_steps),
            ranks=ranks,
            gradient_clipping=order.spec.optimizer.gradient_clipping,
        )
        self.objectives = {
            phase.name: ObjectiveManager(objectives_of(phase.objectives)) for phase in order.spec.phases
        }
        self.readback: Readback[_Taken] = Readback()
        self.speed = Speedometer(order.plan.tokens_per_step)
        self.metrics = MetricsLog(order.folder / "metrics.jsonl", position.step) if ranks.first else None
        self.last_logged = 0.0

    def run(self, stop: StopRequest) -> bool:
        """Takes the steps. False where it stopped before the end because it was asked to."""
        plan = self.order.plan
        self.student.train()
        self.speed.restart()
        while self.step < plan.total_steps:
            phase = plan.phase_at(self.step)
            self._teacher_as_planned(phase)
            batch, after = self.corpus.take(self.cursor, plan.global_batch_size)
            micro_batches = list(
                self.corpus.micro_batches(
                    batch, self.ranks.rank, self.ranks.world, phase.shape.micro_batch_size
                )
            )
            own_tokens = sum(int(count_targets(input_ids)) for input_ids in micro_batches)
            tokens, stops = self.ranks.total(own_tokens, int(stop.requested))
            if stops:
                self._save()
                return False

            lam, rate = plan.quantization_lambda.at(self.step), plan.learning_rate.at(self.step)
            set_lambda(self.student, lam)
            set_learning_rate(self.optimizer, rate)
            teacher = self.teacher if phase.teacher else None
            losses = self.stepper(micro_batches, self.objectives[phase.name], phase.weights, teacher, tokens)
            self.step += 1
            self.cursor = after
            taken = _Taken(self.step, phase, losses.objectives, rate, lam, self.speed.step())
            self.readback.push(taken, losses.values)
            self._report()
            if self.step % self.order.spec.checkpoint.every_steps == 0 or self.step == plan.total_steps:
                self._save()
        return True

    def close(self) -> None:
        """Closes the metrics' file."""
        if self.metrics is not None:
            self.metrics.close()

    def _teacher_as_planned(self, phase: PlannedPhase) -> None:
        """Loads the teacher for a phase that needs it, and frees it in one that does not."""
        if self.teacher is None or phase.teacher == (self.teacher.state is TeacherState.READY):
            return
        if not phase.teacher:
            self.teacher.unload()
        else:
            _log.info("loading the teacher for phase %s at step %d", phase.name, self.step)
            self.reporter.update(teacher=TeacherState.LOADING)
            self.teacher.load()
            # A rank without a teacher must not let the others begin.
            self.ranks.wait()
            self.speed.restart()
        self.reporter.update(teacher=self.teacher.state)

    def _report(self, wait: bool = False) -> None:
        for taken, values in self.readback.arrived(wait):
            loss, norm, skipped, _, longest = values[:5]
            good = int(skipped) == self.skipped
            self.skipped = int(skipped)
            objectives = {
                name: ObjectiveProgress(
                    raw=raw, weight=taken.phase.weights[name], weighted=raw * taken.phase.weights[name]
                )
                for name, raw in zip(taken.objectives, values[5:], strict=True)
                if good
            }
            record = StepRecord(
                step=taken.step,
                phase=taken.phase.name,
                loss=loss if good else None,
                objectives=objectives,
                gradient_norm=norm if good else None,
                learning_rate=taken.learning_rate,
                quantization_lambda=taken.quantization_lambda,
                tokens=taken.step * self.order.plan.tokens_per_step,
                tokens_per_second=taken.tokens_per_second,
                skipped_steps=self.skipped,
                micro_batch_size=taken.phase.shape.micro_batch_size,
                accumulation=taken.phase.shape.accumulation,
                world_size=self.ranks.world,
                teacher=taken.phase.teacher,
            )
            self._publish(record)
            check_skips(int(longest), self.order.spec.health.non_finite.skip_steps, taken.step)

    def _publish(self, record: StepRecord) -> None:
        if self.metrics is not None:
            self.metrics.append(record)
        fields = record.model_dump(exclude={"teacher", "loss", "objectives", "gradient_norm"})
        if record.loss is not None:
            fields |= {"loss": record.loss, "gradient_norm": record.gradient_norm}
            fields["objectives"] = dict(record.objectives)
        self.reporter.update(state=TrainerState.TRAINING, **fields)
        if record.loss is None:
            _log.warning("step %d was left out: its loss or gradient was not finite", record.step)
        elif time.monotonic() - self.last_logged > 5 or record.step == self.order.plan.total_steps:
            self.last_logged = time.monotonic()
            _log.info(
                "step %d/%d %s loss %.4f norm %.3f rate %.2e lambda %.2f, %.0f tokens/s",
                record.step,
                self.order.plan.total_steps,
                record.phase,
                record.loss,
                record.gradient_norm,
                record.learning_rate,
                record.quantization_lambda,
                record.tokens_per_second or 0,
            )

    def _save(self) -> None:
        """Writes a checkpoint of the step reached, unless that step has one."""
        self._report(wait=True)
        if self.checkpointed == self.step:
            return
        self.reporter.update(state=TrainerState.CHECKPOINTING)
        position = replace(
            self.begun_at,
            step=self.step,
            consumed=self.cursor.consumed,
            skipped_steps=self.skipped,
            world_size=self.ranks.world,
        )
        committed = checkpoint.save(self.store, position, self.student, self.optimizer, self.ranks.control)
        self.checkpointed = self.step
        self.reporter.update(state=TrainerState.TRAINING, checkpoint=reported(self.order, committed))
        self.speed.restart()


@dataclass(frozen=True)
class _Taken:
    """A step whose figures are still on the device."""

    step: int
    phase: PlannedPhase
    objectives: tuple[str, ...]
    learning_rate: float
    quantization_lambda: float
    tokens_per_second: float | None
