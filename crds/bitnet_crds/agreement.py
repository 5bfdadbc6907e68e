"""What the parts of a spec must agree on, beyond what each part knows of itself."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from bitnet_crds.errors import WrongValueError
from bitnet_crds.machines import micro_batch_of, pods_of
from bitnet_crds.objectives import TEACHER_OBJECTIVES, BalancedObjective, TeacherLogits
from bitnet_crds.pod_secrets import written_secrets

if TYPE_CHECKING:
    from bitnet_crds.spec import BitNetRunSpec

NEXT_TOKEN_OBJECTIVES = frozenset({"crossEntropy", "maskedDiffusion", "teacherLogits"})
"""Those that ask the student for a next token, which a classifier of sequences does not predict."""


def disagreements(spec: BitNetRunSpec) -> Iterator[WrongValueError]:
    """Everything on which parts of the spec disagree; fields are named from spec on."""
    yield from _teacher(spec)
    yield from _tuning(spec)
    yield from _resize(spec)
    yield from _micro_batches(spec)
    yield from _plateau(spec)
    yield from _cached_logits(spec)
    yield from _transitions(spec)
    yield from _mixtures(spec)
    yield from _own_text(spec)
    yield from _classification(spec)
    yield from _preset(spec)
    yield from _optimizer(spec)
    yield from _export(spec)
    yield from _secrets(spec)


def _weighted(spec: BitNetRunSpec) -> Iterator[tuple[int, str]]:
    """Each phase's index with the name of each objective that it gives weight."""
    for index, phase in enumerate(spec.phases):
        yield from ((index, name) for name, weight in phase.objectives.weights().items() if weight > 0)


def _teacher(spec: BitNetRunSpec) -> Iterator[WrongValueError]:
    asking = [(index, name) for index, name in _weighted(spec) if name in TEACHER_OBJECTIVES]
    if spec.teacher is None and asking:
        index, name = asking[0]
        yield WrongValueError(
            f"phase {spec.phases[index].name!r} gives {name} weight but no teacher is named",
            "Add spec.teacher, or set that weight to 0",
            field="teacher",
        )
    if spec.teacher is not None and not asking:
        yield WrongValueError(
            f"{spec.teacher.from_!r} would never be used, since no phase gives "
            f"{_any_of(TEACHER_OBJECTIVES)} a weight above 0",
            "Give one of them a weight, or remove spec.teacher",
            field="teacher",
        )


def _tuning(spec: BitNetRunSpec) -> Iterator[WrongValueError]:
    if spec.classification is not None and spec.teacher is not None and spec.teacher.tune is not None:
        yield WrongValueError(
            "a teacher is tuned on next tokens, and the text is labelled for a classifier",
            "Remove it, and name a teacher that is tuned for the labels",
            field="teacher.tune",
        )


def _resize(spec: BitNetRunSpec) -> Iterator[WrongValueError]:
    if spec.teacher is None:
        return
    asked = [
        not TEACHER_OBJECTIVES.isdisjoint(spec.objectives_in(index)) for index in range(len(spec.phases))
    ]
    boundaries = [index for index in range(1, len(asked)) if asked[index] != asked[index - 1]]
    if spec.teacher.resize == "Rescale":
        if not boundaries and any(asked):
            yield WrongValueError(
                "the teacher is there in every phase, so that no pods begin on its account",
                "Remove it",
                field="teacher.resize",
            )
        return
    for index in boundaries:
        if pods_of(spec, index) != pods_of(spec, index - 1):
            yield WrongValueError(
                f"the teacher {'comes in' if asked[index] else 'leaves'} in the same pods (InPlace), and "
                f"phase {spec.phases[index].name!r} begins in others than {spec.phases[index - 1].name!r}",
                "Write `resize: Rescale`, or the same workers in both",
                field="teacher.resize",
            )


def _micro_batches(spec: BitNetRunSpec) -> Iterator[WrongValueError]:
    for index, phase in enumerate(spec.phases):
        if micro_batch_of(spec, index) == "Auto" and not pods_of(spec, index).gpus_per_worker:
            own = phase.workers is not None and phase.workers.micro_batch_size is not None
            yield WrongValueError(
                f"Auto measures a GPU's memory, and phase {phase.name!r} has none (gpusPerWorker 0)",
                "Write a number, or give it GPUs",
                field=f"phases[{index}].workers.microBatchSize" if own else "workers.microBatchSize",
            )
            break
    if (
        spec.teacher is not None
        and spec.teacher.batch_size_factor is not None
        and spec.workers.micro_batch_size == "Auto"
    ):
        yield WrongValueError(
            "the micro batch is measured with the teacher in memory (Auto), so there is nothing to multiply",
            "Remove it, or write a number as spec.workers.microBatchSize",
            field="teacher.batchSizeFactor",
        )


def _plateau(spec: BitNetRunSpec) -> Iterator[WrongValueError]:
    plateau = spec.health.plateau
    if plateau is None:
        return
    if spec.schedule.name != "WarmupStableDecay":
        yield WrongValueError(
            "a plateau is watched for while the learning rate holds, and with "
            f"{spec.schedule.name} it never does",
            "Write `name: WarmupStableDecay`, or remove it",
            field="health.plateau",
        )
    if plateau.action == "NextPhase" and len(spec.phases) == 1:
        yield WrongValueError(
            "there is one phase, and none comes next",
            "Write `action: Stop`, or `action: Alert`",
            field="health.plateau.action",
        )


def _cached_logits(spec: BitNetRunSpec) -> Iterator[WrongValueError]:
    if spec.teacher is None or not spec.teacher.cache_logits:
        return
    asking = [
        (index, objective)
        for index in range(len(spec.phases))
        for objective in spec.objectives_in(index).values()
        if isinstance(objective, TeacherLogits)
    ]
    if not asking:
        yield WrongValueError(
            "there is nothing to keep, since no phase gives teacherLogits a weight above 0",
            "Remove it",
            field="teacher.cacheLogits",
        )
    for index, objective in asking:
        if objective.top_k is None:
            yield WrongValueError(
                f"phase {spec.phases[index].name!r} compares the whole vocabulary, of which no cache is kept",
                "Give teacherLogits a topK there, such as 100, or remove cacheLogits",
                field="teacher.cacheLogits",
            )


def _transitions(spec: BitNetRunSpec) -> Iterator[WrongValueError]:
    if spec.phases[0].transition is not None:
        yield WrongValueError(
            f"{spec.phases[0].name!r} is the first phase, and there is none before it to come from",
            "Remove it",
            field="phases[0].transition",
        )
    for index, (before, phase) in enumerate(pairwise(spec.phases), start=1):
        if phase.transition is None or phase.transition.steps == 1:
            continue
        earlier = before.objectives.named()
        for name, own in phase.objectives.named().items():
            old = earlier.get(name)
            # From a weight of 0 there is nothing that could change its meaning.
            if not isinstance(own, BalancedObjective) or not isinstance(old, BalancedObjective):
                continue
            if old.weight > 0 and own.weighting != old.weighting:
                yield WrongValueError(
                    f"{own.weighting} here and {old.weighting} in phase {before.name!r}: a factor of the "
                    "loss and a share of a gradient do not blend into each other",
                    "Write the same weighting in both, or remove the transition",
                    field=f"phases[{index}].objectives.{name}.weighting",
                )


def _mixtures(spec: BitNetRunSpec) -> Iterator[WrongValueError]:
    sources = [source.name for source in spec.data.sources]
    measured = spec.data.mixture.policy != "Static"
    if measured and len(sources) == 1:
        yield WrongValueError(
            f"{sources[0]!r} is the only source, and has nothing to be weighed against",
            "Add a source, or write `policy: Static`",
            field="data.mixture.policy",
        )
    for index, phase in enumerate(spec.phases):
        if phase.mixture is None:
            continue
        field = f"phases[{index}].mixture"
        if measured:
            yield WrongValueError(
                f"the shares follow the policy {spec.data.mixture.policy}, and cannot follow a phase's own "
                "weights too",
                "Remove it, or write `policy: Static` in spec.data.mixture",
                field=field,
            )
        if unknown := [name for name in phase.mixture if name not in sources]:
            yield WrongValueError(
                f"no source is named {unknown[0]!r}", f"Write one of {', '.join(sources)}", field=field
            )
        elif not any(phase.mixture.values()):
            yield WrongValueError(
                f"phase {phase.name!r} gives no source any weight",
                f"Give one a weight above 0, such as {sources[0]}: 1",
                field=field,
            )


def _own_text(spec: BitNetRunSpec) -> Iterator[WrongValueError]:
    """A folder on a disk is read without the run's own; what is in a bucket is copied as it is."""
    written = f"{spec.checkpoint.uri}/"
    for source in spec.data.sources:
        if source.uri.startswith("gs://") and written.startswith(f"{source.uri.rstrip('/')}/"):
            yield WrongValueError(
                f"{spec.checkpoint.uri!r} is in the folder of source {source.name!r}, whose text would be "
                "another as soon as the run has written",
                "Give another address",
                field="checkpoint.uri",
            )


def _classification(spec: BitNetRunSpec) -> Iterator[WrongValueError]:
    weighted = list(_weighted(spec))
    classifying = [index for index, name in weighted if name == "classification"]
    if spec.classification is None:
        for index in classifying:
            yield WrongValueError(
                f"phase {spec.phases[index].name!r} trains a classifier, and there are no labels",
                "Add spec.classification with the labels, or set that weight to 0",
                field=f"phases[{index}].objectives.classification",
            )
        return
    if not classifying:
        yield WrongValueError(
            "no phase gives the objective `classification` a weight above 0, so its head would never learn",
            "Give it one, or remove spec.classification",
            field="classification",
        )
    for index, name in weighted:
        if name in NEXT_TOKEN_OBJECTIVES:
            yield WrongValueError(
                "a classifier predicts labels and no next token",
                f"Set its weight to 0, or remove {name} or spec.classification",
                field=f"phases[{index}].objectives.{name}",
            )
    if spec.data.documents == "Separate":
        yield WrongValueError(
            "each labelled text is a sequence of its own, so there are no documents to be separated",
            "Write `documents: Joined`, or leave it out",
            field="data.documents",
        )
    if spec.data.mixture.policy != "Static":
        yield WrongValueError(
            f"{spec.data.mixture.policy} is measured by next tokens, which a classifier does not predict",
            "Write `policy: Static`, or leave it out",
            field="data.mixture.policy",
        )


def _preset(spec: BitNetRunSpec) -> Iterator[WrongValueError]:
    if spec.model.preset is not None and spec.quantization.sub_ln != "None":
        yield WrongValueError(
            f"{spec.model.preset} has a SubLN of its own before the output projections",
            "Write `subLN: None`, or leave it out",
            field="quantization.subLN",
        )


def _optimizer(spec: BitNetRunSpec) -> Iterator[WrongValueError]:
    if spec.optimizer.name == "MuonClip" and spec.quantization.low_rank_correction is not None:
        yield WrongValueError(
            "beside a low-rank correction the matrices of the decoder layers are frozen, so Muon and QK-clip "
            "have nothing to move",
            "Write `name: AdamW`, or remove lowRankCorrection",
            field="optimizer.name",
        )


def _export(spec: BitNetRunSpec) -> Iterator[WrongValueError]:
    runners = {
        "stock transformers": ("HuggingFace", _beyond_transformers(spec)),
        "llama.cpp": ("GGUF", _beyond_llama_cpp(spec)),
    }
    for runner, (prefix, inexpressible) in runners.items():
        asked = [name for name in spec.export.formats if name.startswith(prefix)]
        if asked and inexpressible:
            yield WrongValueError(
                f"{runner} cannot run what `{'` and `'.join(inexpressible)}` makes, and "
                f"{' and '.join(asked)} {'is' if len(asked) == 1 else 'are'} for that",
                "Write `formats: [Packed]`, or `formats: []`",
                field="export.formats",
            )
    ternary = [name for name in spec.export.formats if name.startswith("GGUF-TQ")]
    if ternary and spec.quantization.weights == "Haar":
        yield WrongValueError(
            f"`weights: Haar` multiplies by weights that are not ternary, and {' and '.join(ternary)} "
            "holds ternary ones",
            "Write GGUF-F16 in its place, or `formats: [Packed]`",
            field="export.formats",
        )


def _secrets(spec: BitNetRunSpec) -> Iterator[WrongValueError]:
    templates = {"workers.template": spec.workers.template}
    for index, phase in enumerate(spec.phases):
        if phase.workers is not None:
            templates[f"phases[{index}].workers.template"] = phase.workers.template
    for field, template in templates.items():
        for place, name in written_secrets(template or {}):
            # The value itself is not repeated: an error ends in logs and in the run's status.
            yield WrongValueError(
                f"{name} is a secret by its name, and whoever may read the run could read it",
                "Name a Secret instead, such as `valueFrom: {secretKeyRef: {name: my-secret, key: "
                f"{name}}}}}`",
                field=f"{field}.{place}",
            )


def _beyond_transformers(spec: BitNetRunSpec) -> list[str]:
    found = []
    if spec.quantization.weights == "Haar":
        found.append("weights: Haar")
    if spec.quantization.low_rank_correction is not None:
        found.append("lowRankCorrection")
    if spec.classification is not None and spec.model.preset is not None:
        found.append(f"classification of a {spec.model.preset}")
    if spec.classification is not None and spec.quantization.sub_ln == "OutputProjections":
        found.append("classification with subLN: OutputProjections")
    return found


def _beyond_llama_cpp(spec: BitNetRunSpec) -> list[str]:
    found = []
    if spec.quantization.low_rank_correction is not None:
        found.append("lowRankCorrection")
    if spec.quantization.sub_ln != "None":
        found.append(f"subLN: {spec.quantization.sub_ln}")
    if spec.classification is not None:
        found.append("classification")
    if spec.model.preset is not None:
        found.append(f"preset: {spec.model.preset}")
    return found


def _any_of(names: frozenset[str]) -> str:
    *others, last = sorted(names)
    return f"{', '.join(others)} or {last}"
