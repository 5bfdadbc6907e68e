"""One run in one process of it: sets up, trains from where it stands, evaluates, exports."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitnet_crds.carried_out import carried_out
from bitnet_crds.machines import pods_of
from bitnet_crds.protocol import Evaluation, Order, TrainerState
from bitnet_trainer.batch import Rows
from bitnet_trainer.checkpoint import resume
from bitnet_trainer.checkpoint.address import open_store
from bitnet_trainer.checkpoint.saver import Saver
from bitnet_trainer.checkpoint.state import Position, Training
from bitnet_trainer.checkpoint.store import CheckpointStore, Committed
from bitnet_trainer.data import Corpus, Cursor, LabelledCorpus
from bitnet_trainer.errors import CheckpointError
from bitnet_trainer.export.stock import check_exportable
from bitnet_trainer.finish import (
    evaluated_sequences,
    measure,
    measure_teacher,
    write_artifacts,
)
from bitnet_trainer.kept import prepared
from bitnet_trainer.loop import TrainingLoop
from bitnet_trainer.mirror import Mirror
from bitnet_trainer.models.convert import ConversionReport
from bitnet_trainer.models.load import LoadedModel
from bitnet_trainer.models.packed import write_packed
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.optim import WeightAverage, groups_table
from bitnet_trainer.optimizer import build_optimizer
from bitnet_trainer.outcome import reported
from bitnet_trainer.phases import phase_objectives
from bitnet_trainer.purpose import Purpose, purpose_of
from bitnet_trainer.quantization.warmup import set_lambda
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.record import Baseline
from bitnet_trainer.report import Reporter
from bitnet_trainer.setup import (
    check_vocabulary,
    check_world,
    compile_layers,
    known_baseline,
    open_run_corpus,
    phases_from,
    planned_teacher,
    said_by,
    settle_attention,
    write_record,
)
from bitnet_trainer.sharding import WholeModel, called_directly, shard
from bitnet_trainer.stop import StopRequest
from bitnet_trainer.told import listening
from bitnet_trainer.tracking import tracked

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """How training ended."""

    stopped: bool
    """Whether it was asked to stop, and did, with a checkpoint."""
    message: str
    boundary: bool = False
    """Whether it ended with a checkpoint from which other pods go on: the next phase is theirs."""
    evaluation: Evaluation | None = None
    artifacts: Mapping[str, str] = field(default_factory=dict)


def train(order: Order, reporter: Reporter, stop: StopRequest) -> Result:
    """Trains a run, going on from its newest checkpoint: to its end, to a phase that trains in other pods, or
    until `stop` is requested.

    Every rank calls it, in a process that torchrun's environment variables describe. Raises the errors of
    `bitnet_trainer.errors`.
    """
    carried = carried_out(order)
    plan = carried.plan
    pods = pods_of(carried.spec, plan.phases.index(plan.phase_at(carried.first_step)))
    ranks = Ranks.join(pods.gpus_per_worker)
    check_world(carried, ranks.world)
    order = prepared(order, ranks, reporter)
    with ExitStack() as ending:
        result = _train(order, purpose_of(order), reporter, stop, ranks, ending)
    if result.stopped:
        # The first rank told its tracker the end meanwhile; a pod that ends before its pod takes it along.
        ranks.wait()
    return result


def _train(
    run: Order, purpose: Purpose, reporter: Reporter, stop: StopRequest, ranks: Ranks, ending: ExitStack
) -> Result:
    order = purpose.order
    spec, plan = order.spec, order.plan
    store, mirror = open_store(order, ranks.rank), Mirror(order)
    if ranks.first:
        purpose.fetch()
    ranks.wait()

    reporter.update(state=TrainerState.LOADING_MODEL, world_size=ranks.world)
    if there := purpose.result(ranks):
        reporter.update(state=TrainerState.FINISHED, step=plan.end_step, tokens=plan.tokens)
        named = " and ".join(there.values())
        return Result(False, f"{named} is there already, and nothing is trained", artifacts=there)
    loaded = purpose.load()
    check_exportable(loaded.model, spec.quantization, spec.export.formats, loaded.tokenizer)
    student = LanguageModel(loaded.model).to(ranks.device)
    objectives = phase_objectives(spec, loaded, student)

    reporter.update(state=TrainerState.PREPARING_DATA)
    corpus = open_run_corpus(run, loaded.tokenizer, ranks, said_by(reporter))
    fingerprint, largest_token = corpus.fingerprint(), corpus.largest_token()
    check_vocabulary(largest_token, loaded)
    held_out = corpus.held_out(evaluated_sequences(ranks.device, plan.sequence_length))

    # A run that may not go on is refused before it costs anything, or writes over what the other one left.
    purpose.settle(fingerprint, store, ranks)
    found, position = _newest(order, store, fingerprint, reporter, ranks)
    if position.step < plan.end_step and plan.phase_at(position.step).shape.world_size != ranks.world:
        return _for_other_pods(order, position.step, ranks.world)
    phases = phases_from(plan, position.step)
    # What is only the most that a micro batch may be says nothing of what fits.
    evaluation_batch = min(1 if phase.auto else phase.shape.micro_batch_size for phase in phases)

    reporter.update(state=TrainerState.EVALUATING)
    conversion, baseline = _converted(purpose, loaded, corpus, fingerprint, held_out, evaluation_batch, ranks)

    written = WholeModel(loaded.model)
    if spec.workers.parallelism == "FSDP" and ranks.world > 1:
        written = shard(student, ranks, packed=not ranks.share_a_machine)
    settle_attention(order, student, evaluation_batch, ranks)
    compile_layers(student, order.folder / "compiled", ranks)
    optimizer = build_optimizer(spec.optimizer, loaded.model)
    _log.info("%s", groups_table(optimizer))
    average = WeightAverage(loaded.model, spec.averaging.decay) if spec.averaging is not None else None
    training = Training(loaded.model, optimizer, {"average": average} if average is not None else {})
    torch.manual_seed(spec.seed + ranks.rank)
    if found is not None:
        resume.load(store, found, position, training, ranks.control)

    teacher = planned_teacher(order, loaded, ranks.device, fingerprint, largest_token)
    inference = None
    if spec.checkpoint.inference_weights:
        inference = partial(_write_inference, written.outline, loaded.tokenizer, conversion)
    saver = Saver(store, training, ranks.group_of_a_thread(), inference, mirror.after_commit)
    tracker = ending.enter_context(tracked(order, reporter)) if ranks.first else None
    loop = TrainingLoop(
        order,
        reporter,
        ranks,
        saver,
        corpus,
        student,
        objectives,
        optimizer,
        average,
        teacher,
        position,
        tracker,
    )
    if ranks.first:
        ending.enter_context(listening(loop.heard.append, reporter.warn))
    with stop.deferred(), closing(loop):
        finished = loop.run(stop)
    (stops,) = ranks.total(int(stop.requested))
    if finished and loop.step < plan.end_step:
        ended, begins = (plan.phase_at(step).name for step in (loop.step - 1, loop.step))
        return Result(
            False,
            f"phase {ended!r} ended at step {loop.step}; phase {begins!r} goes on in other pods",
            boundary=True,
        )
    if not finished or stops:
        return Result(True, f"asked to stop; it goes on from step {loop.committed}")

    reporter.update(state=TrainerState.EVALUATING)
    if average is not None:
        average.take_over()
    _wholly_quantized(loaded.model, conversion)
    with called_directly(student):
        after = measure(loaded.model, held_out, evaluation_batch, ranks)
    reporter.update(state=TrainerState.EXPORTING)
    artifacts: dict[str, str] = {}
    if (whole := written.on_first(ranks)) is not None:
        artifacts = write_artifacts(order.folder, spec, plan, whole, loaded.tokenizer, conversion)
        artifacts = mirror.at_end(artifacts) | purpose.write(whole, loaded.tokenizer)
    ranks.wait()

    reporter.update(state=TrainerState.EVALUATING)
    of_teacher = None
    if teacher is not None and held_out.classes is None:
        of_teacher = measure_teacher(teacher, held_out, evaluation_batch, ranks)
    evaluated, sentence = purpose.evaluated(baseline, after, of_teacher)
    if tracker is not None:
        tracker.summarize(evaluated)
    reporter.update(state=TrainerState.FINISHED)
    return Result(
        False,
        f"trained {loop.step} steps, {loop.step * plan.tokens_per_step:,} tokens; {sentence}",
        evaluation=evaluated,
        artifacts=artifacts,
    )


def _newest(
    order: Order, store: CheckpointStore, fingerprint: str, reporter: Reporter, ranks: Ranks
) -> tuple[Committed | None, Position]:
    """The newest checkpoint that may be gone on from, if there is one, and where training stands there.

    Raises BadInput or CheckpointError where there are some, and none is for this run.
    """
    position = _at_start(order, fingerprint)
    found = ranks.from_first(resume.newest_sound(store, order.plan.rollbacks) if ranks.first else None)
    if found is not None:
        position = ranks.from_first(resume.read_position(store, found) if ranks.first else None)
        resume.check_position(position, found, order.training_hash, fingerprint)
        reporter.update(
            checkpoint=reported(order, found),
            step=position.step,
            phase=order.plan.phase_at(position.step).name,
            tokens=position.step * order.plan.tokens_per_step,
            skipped_steps=position.skipped_steps,
        )
    reporter.update(begun_step=position.step)
    return found, position


def _converted(
    purpose: Purpose,
    loaded: LoadedModel,
    corpus: Corpus | LabelledCorpus,
    fingerprint: str,
    held_out: Rows,
    batch_size: int,
    ranks: Ranks,
) -> tuple[ConversionReport, Baseline]:
    """Converts the model, in place and to lambda 1; what it is worth before that and after it, untrained.

    Both stand in run.json from then on; what an earlier process of the run measured is not measured again.
    """
    order = purpose.order
    baseline = known_baseline(order, fingerprint, ranks)
    original = None if baseline else measure(loaded.model, held_out, batch_size, ranks)
    conversion = purpose.convert(loaded.model)
    _wholly_quantized(loaded.model, conversion)
    if original is not None:
        quantized = None
        if conversion.converted:
            quantized = measure(loaded.model, held_out, batch_size, ranks).value
        baseline = Baseline.of(original.count, original.value, quantized)
    assert baseline is not None
    if ranks.first:
        write_record(order, loaded, conversion, fingerprint, corpus.readings, baseline)
    return conversion, baseline


def _wholly_quantized(model: PreTrainedModel, conversion: ConversionReport) -> None:
    """Sets lambda to 1 where there is one."""
    if conversion.converted:
        set_lambda(model, 1.0)


def _for_other_pods(order: Order, step: int, world: int) -> Result:
    """Where the newest sound checkpoint, of `step`, is none that these pods may go on from.

    Raises CheckpointError where there is none, and the run would begin anew unasked.
    """
    phase = order.plan.phase_at(step)
    if not step and order.first_step:
        raise CheckpointError(
            f"checkpoint.uri: these pods are made for step {order.first_step}, and there is no checkpoint in "
            f"{order.address}. Restore one, or give the run another name to begin again."
        )
    return Result(
        False,
        f"the newest sound checkpoint is of step {step}, whose phase {phase.name!r} trains in "
        f"{phase.shape.world_size} ranks, and these pods have {world}",
        boundary=True,
    )


def _write_inference(
    outline: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversion: ConversionReport,
    folder: Path,
    weights: Mapping[str, torch.Tensor],
) -> None:
    write_packed(outline, conversion, folder, tokenizer, weights)


def _at_start(order: Order, fingerprint: str) -> Position:
    """Where a run begins."""
    shares = tuple(order.plan.phases[0].mixture.values())
    nothing = Cursor.at_start(len(shares))
    return Position(
        step=0,
        consumed=nothing.consumed,
        origin=nothing.origin,
        mixture=shares,
        balance={},
        skipped_steps=0,
        skipped_in_row=0,
        ledger_hash=order.training_hash,
        data_fingerprint=fingerprint,
        world_size=0,
    )
