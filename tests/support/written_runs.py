"""Runs as people write them, right and wrong, for whoever judges them: the contract and an API server alike.

Each is the full run of examples/ with some values changed.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]
Changes = Mapping[str, Any]
"""New value by path, such as `spec.phases.0.until`; `...` removes the key."""


@dataclass(frozen=True)
class Wrong:
    """A run that is refused, and how."""

    changes: Changes
    field: str
    """The field that the contract blames."""
    what: str
    """Words of what it finds."""
    fix: str
    """Words of the mend."""
    server_field: str
    """The field that the API server blames."""
    server_words: str
    """Words of its message."""


def changed(document: Document, changes: Changes) -> Document:
    """A copy of the document with the values changed."""
    copy = deepcopy(document)
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        block: Any = copy
        for part in parents:
            block = block[part]
        if value is ...:
            del block[last]
        else:
            block[last] = deepcopy(value)
    return copy


_WEIGHT = {"weight": 1}
_ONE_PHASE = {"spec.teacher": ..., "spec.phases": [{"name": "all", "until": "100%"}]}
_DISTILL = "spec.phases.2.objectives"
_LABELS = {"labels": ["bad", "good"]}
_CLASSIFIER = {
    **_ONE_PHASE,
    "spec.classification": _LABELS,
    "spec.phases.0.objectives": {"classification": _WEIGHT},
}

RIGHT: dict[str, Changes] = {
    "as it is": {},
    "a model in a bucket": {"spec.model": {"from": "gs://my-bucket.example.org/qwen/model.gguf"}},
    "a preset": {"spec.model": {"preset": "BitNetLlama-350M", "tokenizer": "gs://models/tokenizer"}},
    "a classifier": _CLASSIFIER,
    "a classifier from a preset, with a teacher": {
        "spec.model": {"preset": "BitNetLlama-1M", "tokenizer": "file:///tokenizer"},
        "spec.export.formats": ["Packed"],
        "spec.classification": _LABELS,
        "spec.phases.0.objectives": {"classification": _WEIGHT},
        "spec.phases.1.objectives": {"classification": _WEIGHT, "crossEntropy": {"weight": 0}},
        _DISTILL: {"classification": _WEIGHT, "attentionRelations": _WEIGHT, "hiddenStates": _WEIGHT},
    },
    "Haar, packed": {"spec.quantization.weights": "Haar", "spec.export.formats": ["Packed"]},
    "a correction, not exported": {
        "spec.quantization.lowRankCorrection": {"ratio": 0.1},
        "spec.export.formats": [],
    },
    "a classifier with a correction": {
        **_CLASSIFIER,
        "spec.quantization.lowRankCorrection": {"ratio": 0.1},
        "spec.export.formats": ["Packed"],
    },
    "SubLN for stock transformers": {"spec.quantization.subLN": "OutputProjections"},
    "influence": {"spec.data.mixture": {"policy": "Influence", "everySteps": 50, "target": "code"}},
    "a phase with a mixture of its own": {"spec.phases.1.mixture": {"code": 1, "web": 0}},
    "masked distillation, cached": {
        "spec.teacher.cacheLogits": True,
        _DISTILL: {
            "maskedDiffusion": {"weight": 0, "mode": "Complementary"},
            "teacherLogits": {"weight": 1, "topK": 100, "tail": "Renormalized", "input": "Masked"},
        },
    },
    "weights found by measuring": {
        _DISTILL: {
            "crossEntropy": _WEIGHT,
            "blockAttention": {"weight": 0.1, "weighting": "GradientRatio", "blockSize": 16},
            "hiddenStates": {"weight": 0.1, "distance": "Cosine", "layerWeights": [0, 1]},
        }
    },
    "distillation that fades out": {
        "spec.phases.1.objectives": {"teacherLogits": _WEIGHT},
        _DISTILL: {"crossEntropy": _WEIGHT},
        "spec.phases.2.transition": {"steps": 100, "curve": "Cosine"},
    },
}
"""Runs that are taken, by what they show."""

WRONG: dict[str, Wrong] = {
    "a model and a preset": Wrong(
        {"spec.model.preset": "BitNetLlama-350M", "spec.model.tokenizer": "hf://a/b"},
        "spec.model",
        "both are named",
        "one of `from` and `preset`",
        "spec.model",
        "write one of `from` and `preset`",
    ),
    "no model": Wrong(
        {"spec.model": {}},
        "spec.model",
        "neither `from` nor `preset` is named",
        "one of `from` and `preset`",
        "spec.model",
        "write one of `from` and `preset`",
    ),
    "a preset without tokenizer": Wrong(
        {"spec.model": {"preset": "BitNetLlama-350M"}},
        "spec.model.tokenizer",
        "preset BitNetLlama-350M has no tokenizer",
        "the address of one",
        "spec.model.tokenizer",
        "write `tokenizer` with `preset`",
    ),
    "a tokenizer beside a model": Wrong(
        {"spec.model.tokenizer": "hf://a/b"},
        "spec.model.tokenizer",
        "brings its own",
        "Remove it",
        "spec.model.tokenizer",
        "write `tokenizer` with `preset`",
    ),
    "a revision of a preset": Wrong(
        {"spec.model": {"preset": "BitNetLlama-1M", "tokenizer": "hf://a/b", "revision": "main"}},
        "spec.model.revision",
        "'main' has no meaning for a preset",
        "Remove it",
        "spec.model.revision",
        "remove it, or use an hf:// address",
    ),
    "a bucket that cannot be": Wrong(
        {"spec.model": {"from": "gs://My_Bucket/qwen"}},
        "spec.model.from",
        "'gs://My_Bucket/qwen' is not an address",
        "gs://bucket/path",
        "spec.model.from",
        "or gs://bucket/path",
    ),
    "text in a bucket": Wrong(
        {"spec.data.sources.0.uri": "gs://bucket/text"},
        "spec.data.sources[0].uri",
        "'gs://bucket/text' is not an address that this field takes",
        "pvc://claim/path",
        "spec.data.sources[0].uri",
        "write file:///absolute/path or pvc://claim/path",
    ),
    "no weight anywhere": Wrong(
        {"spec.phases.0.objectives": {"maskedDiffusion": {"weight": 0}, "hiddenStates": {"weight": 0}}},
        "spec.phases[0].objectives",
        "no objective has a weight above 0",
        "crossEntropy: {weight: 1}",
        "spec.phases[0].objectives",
        "name one with a weight",
    ),
    "distillation of attention without teacher": Wrong(
        {"spec.teacher": ..., _DISTILL: {"attentionRelations": _WEIGHT}},
        "spec.teacher",
        "'distill' gives attentionRelations weight but no teacher is named",
        "Add spec.teacher",
        "spec",
        "add spec.teacher, or set that weight to 0",
    ),
    "a tail without top": Wrong(
        {_DISTILL: {"teacherLogits": {"weight": 1, "tail": "Bucket"}}},
        "spec.phases[2].objectives.teacherLogits.tail",
        "'Bucket' has no meaning without topK",
        "Add topK",
        "spec.phases[2].objectives.teacherLogits.tail",
        "add topK, or remove it",
    ),
    "layers twice": Wrong(
        {_DISTILL: {"hiddenStates": {"weight": 1, "layers": "Uniform", "layerWeights": [1]}}},
        "spec.phases[2].objectives.hiddenStates.layers",
        "'Uniform' has no effect beside layerWeights",
        "Remove one",
        "spec.phases[2].objectives.hiddenStates.layers",
        "remove one of the two",
    ),
    "no layer": Wrong(
        {_DISTILL: {"hiddenStates": {"weight": 1, "layerWeights": [0, 0]}}},
        "spec.phases[2].objectives.hiddenStates.layerWeights",
        "all 0",
        "Give some layer a weight",
        "spec.phases[2].objectives.hiddenStates.layerWeights",
        "give some layer a weight above 0",
    ),
    "a ratio to nothing": Wrong(
        {_DISTILL: {"teacherLogits": {"weight": 0.1, "weighting": "GradientRatio"}}},
        "spec.phases[2].objectives.teacherLogits.weighting",
        "crossEntropy has no weight here",
        "weighting: Fixed",
        "spec.phases[2].objectives",
        "or write `weighting: Fixed`",
    ),
    "masked input that nobody masks": Wrong(
        {_DISTILL: {"teacherLogits": {"weight": 1, "input": "Masked"}}},
        "spec.phases[2].objectives.teacherLogits.input",
        "names no maskedDiffusion",
        "its weight may be 0",
        "spec.phases[2].objectives.teacherLogits.input",
        "write `input: Clean`",
    ),
    "a weight in a word": Wrong(
        {"spec.phases.2.objectives.teacherLogits.weight": "Auto"},
        "spec.phases[2].objectives.teacherLogits.weight",
        "'Auto' is none",
        "weighting: GradientRatio",
        "spec.phases[2].objectives.teacherLogits.weight",
        "must be of type number",
    ),
    "settings of a static mixture": Wrong(
        {"spec.data.mixture": {"everySteps": 5}},
        "spec.data.mixture.everySteps",
        "no meaning with policy Static",
        "policy: Influence",
        "spec.data.mixture",
        "write `policy: Influence`",
    ),
    "an unknown target": Wrong(
        {"spec.data.mixture": {"policy": "Influence", "target": "books"}},
        "spec.data.mixture.target",
        "'books'",
        "web, code",
        "spec.data.mixture.target",
        "name one of spec.data.sources",
    ),
    "one source that is to have influence": Wrong(
        {
            "spec.data.mixture": {"policy": "Influence"},
            "spec.data.sources": [{"name": "web", "uri": "file:///text"}],
        },
        "spec.data.mixture.policy",
        "'web' is the only source",
        "policy: Static",
        "spec.data.mixture.policy",
        "add a source, or write `policy: Static`",
    ),
    "two who decide the mixture": Wrong(
        {"spec.data.mixture": {"policy": "Influence"}, "spec.phases.1.mixture": {"web": 1}},
        "spec.phases[1].mixture",
        "follow the policy Influence",
        "Remove it",
        "spec.data.mixture.policy",
        "cannot follow a phase's own mixture too",
    ),
    "a mixture of unknown text": Wrong(
        {"spec.phases.1.mixture": {"web": 1, "books": 1}},
        "spec.phases[1].mixture",
        "'books'",
        "web, code",
        "spec.phases",
        "names no source of spec.data",
    ),
    "a mixture of nothing": Wrong(
        {"spec.phases.1.mixture": {"web": 0}},
        "spec.phases[1].mixture",
        "'main' gives no source any weight",
        "such as web: 1",
        "spec.phases[1].mixture",
        "give one a weight above 0",
    ),
    "a transition from nowhere": Wrong(
        {"spec.phases.0.transition": {"steps": 5}},
        "spec.phases[0].transition",
        "'warmup' is the first phase",
        "Remove it",
        "spec.phases",
        "remove its transition",
    ),
    "a classifier without labels": Wrong(
        {**_ONE_PHASE, "spec.phases.0.objectives": {"classification": _WEIGHT}},
        "spec.phases[0].objectives.classification",
        "there are no labels",
        "Add spec.classification",
        "spec",
        "add spec.classification",
    ),
    "labels that nobody learns": Wrong(
        {
            "spec.classification": _LABELS,
            **{f"spec.phases.{index}.objectives": {"hiddenStates": _WEIGHT} for index in range(3)},
        },
        "spec.classification",
        "its head would never learn",
        "remove spec.classification",
        "spec.classification",
        "give the objective `classification` a weight",
    ),
    "a classifier of next tokens": Wrong(
        {**_CLASSIFIER, "spec.phases.0.objectives": {"classification": _WEIGHT, "crossEntropy": _WEIGHT}},
        "spec.phases[0].objectives.crossEntropy",
        "labels and no next token",
        "Set its weight to 0",
        "spec.classification",
        "remove crossEntropy, maskedDiffusion and teacherLogits",
    ),
    "a classifier that follows influence": Wrong(
        {**_CLASSIFIER, "spec.data.mixture": {"policy": "Influence"}},
        "spec.data.mixture.policy",
        "measured by next tokens",
        "policy: Static",
        "spec.data.mixture.policy",
        "write `policy: Static`",
    ),
    "a preset's classifier for stock transformers": Wrong(
        {**_CLASSIFIER, "spec.model": {"preset": "BitNetLlama-1M", "tokenizer": "hf://a/b"}},
        "spec.export.formats",
        "cannot run what `classification of a BitNetLlama-1M` makes",
        "formats: [Packed]",
        "spec.export.formats",
        "write `formats: [Packed]`",
    ),
    "a classifier with SubLN for stock transformers": Wrong(
        {**_CLASSIFIER, "spec.quantization.subLN": "OutputProjections"},
        "spec.export.formats",
        "`classification with subLN: OutputProjections`",
        "formats: [Packed]",
        "spec.export.formats",
        "write `formats: [Packed]`",
    ),
    "a label twice": Wrong(
        {**_CLASSIFIER, "spec.classification": {"labels": ["good", "good"]}},
        "spec.classification.labels",
        "two labels are named 'good'",
        "a name of its own",
        "spec.classification.labels[1]",
        "Duplicate value",
    ),
    "a cache of whole vocabularies": Wrong(
        {"spec.teacher.cacheLogits": True, _DISTILL: {"teacherLogits": _WEIGHT}},
        "spec.teacher.cacheLogits",
        "'distill' compares the whole vocabulary",
        "topK",
        "spec.teacher.cacheLogits",
        "give teacherLogits a topK",
    ),
    "a cache of nothing": Wrong(
        {"spec.teacher.cacheLogits": True, _DISTILL: {"hiddenStates": _WEIGHT}},
        "spec.teacher.cacheLogits",
        "nothing to keep",
        "Remove it",
        "spec.teacher.cacheLogits",
        "or remove cacheLogits",
    ),
    "Haar for stock transformers": Wrong(
        {"spec.quantization.weights": "Haar"},
        "spec.export.formats",
        "cannot run what `weights: Haar` makes",
        "formats: [Packed]",
        "spec.export.formats",
        "write `formats: [Packed]`",
    ),
    "a correction for stock transformers": Wrong(
        {"spec.quantization.lowRankCorrection": {"ratio": 0.1}},
        "spec.export.formats",
        "cannot run what `lowRankCorrection` makes",
        "formats: [Packed]",
        "spec.export.formats",
        "write `formats: [Packed]`",
    ),
    "a format twice": Wrong(
        {"spec.export.formats": ["Packed", "Packed"]},
        "spec.export.formats",
        "Packed, Packed names one format twice",
        "once",
        "spec.export.formats[1]",
        "Duplicate value",
    ),
    "a preset with SubLN once more": Wrong(
        {
            "spec.model": {"preset": "BitNetLlama-1M", "tokenizer": "hf://a/b"},
            "spec.quantization.subLN": "AllProjections",
        },
        "spec.quantization.subLN",
        "BitNetLlama-1M has a SubLN of its own",
        "subLN: None",
        "spec.quantization.subLN",
        "write `subLN: None`",
    ),
}
"""Runs that are refused, by what is wrong with them."""
