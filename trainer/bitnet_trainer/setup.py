"""Parts of a run's set-up that its ranks do together, or that one does for all."""

import importlib
import inspect
import logging
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedTokenizerBase

from bitnet_crds.plan import Plan, PlannedPhase
from bitnet_crds.protocol import Order, tuned_teacher_address
from bitnet_crds.spec import BitNetRunSpec
from bitnet_trainer.data import Corpus, Heard, LabelledCorpus, Reading, nobody, open_corpus, open_labelled
from bitnet_trainer.errors import BadInput, ModelUnavailable
from bitnet_trainer.models.attention import prefer
from bitnet_trainer.models.attention_backends import AttentionShape, fastest, measure
from bitnet_trainer.models.convert import ConversionReport
from bitnet_trainer.models.load import LoadedModel, load_model, load_tokenizer
from bitnet_trainer.models.presets import build_preset
from bitnet_trainer.models.sequence_classification import classifier_from
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.record import Baseline, RunRecord, now, revision, versions
from bitnet_trainer.report import Reporter
from bitnet_trainer.teacher import Teacher
from bitnet_trainer.teacher_cache import LogitsCache
from bitnet_trainer.texts import source_texts
from bitnet_trainer.triton_kernels import has_kernels, missing

_log = logging.getLogger(__name__)

_COMPILING_PROCESSES = 4
_SAID_EVERY = 1_000_000
"""Tokens: a second or so of one process."""


def phases_from(plan: Plan, step: int) -> tuple[PlannedPhase, ...]:
    """The phases that pods of step `step` train, in whole or in part; of the run's end, its last one."""
    end = plan.pods_end(step)
    ahead = (phase for phase in plan.phases if phase.end_step > step and phase.first_step < end)
    return tuple(ahead) or (plan.phase_at(step),)


def check_world(order: Order, world: int) -> None:
    """Raises BadInput where a phase of these pods is planned for another number of ranks than there are."""
    for phase in phases_from(order.plan, order.first_step):
        if phase.shape.world_size != world:
            raise BadInput(
                f"phase {phase.name!r} is planned for {phase.shape.world_size} ranks and {world} were "
                "started. Start as many as its workers' count x gpusPerWorker says (one a worker without "
                "GPUs)."
            )


def load_student(spec: BitNetRunSpec) -> LoadedModel:
    """The model to train, not converted yet: pretrained or from a preset, a classifier where asked.

    What is drawn at random follows from the run's seed, on each rank alike. Raises what `models.load` raises.
    """
    torch.manual_seed(spec.seed)
    if spec.model.from_ is not None:
        loaded = load_model(spec.model.from_, spec.model.revision)
    else:
        assert spec.model.preset is not None
        tokenizer = student_tokenizer(spec)
        model = build_preset(spec.model.preset, len(tokenizer))
        # Whoever loads what is exported has them from its config.
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(model.config, token, getattr(tokenizer, token))
        loaded = LoadedModel(model, tokenizer, spec.model.preset)
    if spec.classification is None:
        return loaded
    classifier = classifier_from(loaded.model, spec.classification.labels)
    return LoadedModel(classifier, loaded.tokenizer, loaded.source)


def student_tokenizer(spec: BitNetRunSpec) -> PreTrainedTokenizerBase:
    """The tokenizer of the model to train, alone. Raises ModelUnavailable."""
    address = spec.model.from_ or spec.model.tokenizer
    assert address is not None
    return load_tokenizer(address, spec.model.revision)


def wrapped(student: nn.Module, ranks: Ranks) -> nn.Module:
    """The student as the ranks train it together: in DDP where there are several, unless it is sharded."""
    if ranks.world == 1 or isinstance(student, FSDPModule):
        return student
    # Every rank sets lambda itself. Torch 2.15 renames the option, and warns of the old name.
    known = inspect.signature(DistributedDataParallel).parameters
    options: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
    }
    return DistributedDataParallel(
        student,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **options,
    )


def settle_attention(order: Order, student: LanguageModel, rows: int, ranks: Ranks) -> None:
    """Has whole rows attended to by the kernel that is fastest on the first rank's GPU; every rank calls it.

    Of micro batches of so many `rows`. On the CPU, and where no row is one text, there is nothing to choose.
    """
    spec = order.spec
    if ranks.device.type != "cuda" or spec.classification is not None or spec.data.documents == "Separate":
        return
    chosen = None
    if ranks.first:
        shape = AttentionShape(
            batch=rows,
            heads=student.model.config.num_attention_heads,
            key_heads=student.key_heads,
            length=order.plan.sequence_length,
            head_dim=student.head_dim,
        )
        seconds = measure(shape, ranks.device)
        chosen = fastest(seconds)
        each = ", ".join(f"{name} {took * 1e3:.2f} ms" for name, took in seconds.items())
        _log.info("attention of a layer by %s; forward and backward: %s", chosen or "torch's choice", each)
    # One run's ranks compute alike, whatever each of them would have measured.
    prefer(student.model, ranks.from_first(chosen))


def compile_layers(student: LanguageModel, folder: Path, ranks: Ranks) -> None:
    """Has the student's layers compiled where its device has kernels; every rank calls it.

    What is compiled is kept in `folder`, a run's own, so that a process that goes on with the run finds it
    done; unless TORCHINDUCTOR_CACHE_DIR names another one, such as many runs share.
    """
    if ranks.device.type != "cuda":
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    inductor: Any = importlib.import_module("torch._inductor.config")
    # Torch would start a process for each of the machine's processors, up to 32 a rank and 300 MB each,
    # whatever a pod may have of them; a layer has some thirty kernels.
    inductor.compile_threads = int(os.environ.get("TORCHINDUCTOR_COMPILE_THREADS", _COMPILING_PROCESSES))
    if has_kernels(ranks.device):
        student.compile_layers()
    elif ranks.first:
        why = missing() or f"a newer GPU than {torch.cuda.get_device_name(ranks.device)}"
        _log.warning("layers are not compiled, and take some three times as long: that needs %s", why)


def replayable(spec: BitNetRunSpec, world: int) -> bool:
    """Whether a run's layers may be CUDA graphs: not sharded ones, whose parameters move.

    TORCHINDUCTOR_CUDAGRAPHS=0, torch's own variable, goes without.
    """
    whole = world == 1 or spec.workers.parallelism == "DDP"
    return whole and os.environ.get("TORCHINDUCTOR_CUDAGRAPHS") != "0"


def said_by(reporter: Reporter) -> Heard:
    """Has the tokens that text is made into counted in the progress, a million at a time."""
    whole = reporter.progress.prepared_tokens

    def heard(tokens: int) -> None:
        nonlocal whole
        whole += tokens
        if whole - reporter.progress.prepared_tokens >= _SAID_EVERY:
            reporter.update(prepared_tokens=whole)

    return heard


def open_run_corpus(
    order: Order, tokenizer: PreTrainedTokenizerBase, ranks: Ranks, heard: Heard = nobody
) -> Corpus | LabelledCorpus:
    """In turns, so that one process tokenises and the others find it done, or one a machine where they share
    no disk. The one that does tells `heard`."""
    data, classification = order.spec.data, order.spec.classification
    texts = source_texts(order, ranks)
    settings: dict[str, Any] = {
        "sequence_length": data.sequence_length,
        "held_out": Fraction(data.held_out),
        "seed": order.spec.seed,
        "cache": order.folder / "tokens",
        "corrupt_share": Fraction(data.corrupt_share),
        "heard": heard,
    }
    for _ in range(ranks.turn):
        ranks.wait()
    corpus = (
        open_corpus(texts, tokenizer, separate=data.documents == "Separate", **settings)
        if classification is None
        else open_labelled(texts, tokenizer, labels=classification.labels, **settings)
    )
    if ranks.first:
        for name, reading in corpus.readings.items():
            if reading.corrupt:
                _log.warning("%s They are left out.", reading.sentence(name))
    for _ in range(ranks.turn, 2):
        ranks.wait()
    return corpus


def known_baseline(order: Order, fingerprint: str, ranks: Ranks) -> Baseline | None:
    """The untrained model's figures as an earlier process of this run measured them on the same text."""
    record = RunRecord.read(order.folder / "run.json") if ranks.first else None
    same = record is not None and record.data_fingerprint == fingerprint and record.spec == order.spec
    return ranks.from_first(record.baseline if record is not None and same else None)


def write_record(
    order: Order,
    loaded: LoadedModel,
    conversion: ConversionReport,
    fingerprint: str,
    readings: Mapping[str, Reading],
    baseline: Baseline,
) -> None:
    """Writes run.json; one rank calls it."""
    path = order.folder / "run.json"
    earlier = RunRecord.read(path)
    RunRecord(
        namespace=order.namespace,
        name=order.name,
        started=earlier.started if earlier is not None else now(),
        spec=order.spec,
        plan=order.plan,
        ledger_hash=order.plan.ledger_hash,
        data_fingerprint=fingerprint,
        sources=dict(readings),
        model=loaded.source,
        converted_layers=len(conversion.converted),
        versions=versions(),
        revision=revision(),
        baseline=baseline,
    ).write(path)


def check_vocabulary(largest_token: int, loaded: LoadedModel) -> None:
    """Raises ModelUnavailable where the text has tokens that the model has no embedding for.

    Embedding such a token would end the run at the step that first draws it, on CUDA with all that ran there.
    """
    known = len(loaded.model.get_input_embeddings().get_parameter("weight"))
    if largest_token >= known:
        raise ModelUnavailable(
            f"the tokenizer of {loaded.source} makes token {largest_token} of the text, and the model knows "
            f"{known} tokens. Use the tokenizer that the model was trained with."
        )


def is_the_original(spec: BitNetRunSpec) -> bool:
    """Whether the teacher, as published, is the very model that the student begins as."""
    model, teacher = spec.model, spec.teacher
    return teacher is not None and (teacher.from_, teacher.revision) == (model.from_, model.revision)


def planned_teacher(
    order: Order, loaded: LoadedModel, device: torch.device, fingerprint: str, largest_token: int
) -> Teacher | None:
    """The run's teacher, not loaded yet; None where it has none. A tuned one is where it was written.

    `fingerprint` and `largest_token` are the text's.
    """
    asked = order.spec.teacher
    if asked is None:
        return None
    tuned = asked.tune is not None
    tokens = None if is_the_original(order.spec) and not tuned else loaded.tokenizer.get_vocab()
    cache = LogitsCache(order.folder / "teacher-logits", fingerprint) if asked.cache_logits else None
    return Teacher(
        tuned_teacher_address(order) if tuned else asked.from_,
        None if tuned else asked.revision,
        loaded.model.config.vocab_size,
        device,
        tokens,
        precision=asked.precision,
        cache=cache,
        largest_token=largest_token,
    )
