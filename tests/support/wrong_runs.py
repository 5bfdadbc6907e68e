"""Runs that are refused, and the words in which they are: by the contract and by an API server."""

from dataclasses import dataclass

from written_runs import CLASSIFIER, DISTILL, LABELS, ONE_PHASE, WEIGHT, Changes


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


WRONG: dict[str, Wrong] = {
    **{
        f"{key} of AdamW": Wrong(
            {f"spec.optimizer.{key}": 0.5},
            f"spec.optimizer.{key}",
            f"{key} has no meaning with AdamW",
            "Remove it, or write `name: MuonClip`",
            "spec.optimizer",
            "remove them, or write `name: MuonClip`",
        )
        for key in ("muonLearningRate", "clippingThreshold", "clippingAlpha")
    },
    **{
        f"{key} of {name}": Wrong(
            {"spec.schedule": {"name": name, key: value}},
            f"spec.schedule.{key}",
            f"{key} has no meaning with {name}",
            "Remove it, or write `name: WarmupStableDecay`",
            "spec.schedule",
            "remove them, or write `name: WarmupStableDecay`",
        )
        for name, key, value in (("Cosine", "decayFraction", 0.2), ("Linear", "decayCurve", "Cosine"))
    },
    "MuonClip beside a correction": Wrong(
        {
            "spec.optimizer": {"name": "MuonClip"},
            "spec.quantization.lowRankCorrection": {"ratio": 0.1},
            "spec.export.formats": ["Packed"],
        },
        "spec.optimizer.name",
        "have nothing to move",
        "Write `name: AdamW`, or remove lowRankCorrection",
        "spec.optimizer.name",
        "write `name: AdamW`, or remove lowRankCorrection",
    ),
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
        {"spec.teacher": ..., DISTILL: {"attentionRelations": WEIGHT}},
        "spec.teacher",
        "'distill' gives attentionRelations weight but no teacher is named",
        "Add spec.teacher",
        "spec",
        "add spec.teacher, or set that weight to 0",
    ),
    "a tail without top": Wrong(
        {DISTILL: {"teacherLogits": {"weight": 1, "tail": "Bucket"}}},
        "spec.phases[2].objectives.teacherLogits.tail",
        "'Bucket' has no meaning without topK",
        "Add topK",
        "spec.phases[2].objectives.teacherLogits.tail",
        "add topK, or remove it",
    ),
    "layers twice": Wrong(
        {DISTILL: {"hiddenStates": {"weight": 1, "layers": "Uniform", "layerWeights": [1]}}},
        "spec.phases[2].objectives.hiddenStates.layers",
        "'Uniform' has no effect beside layerWeights",
        "Remove one",
        "spec.phases[2].objectives.hiddenStates.layers",
        "remove one of the two",
    ),
    "no layer": Wrong(
        {DISTILL: {"hiddenStates": {"weight": 1, "layerWeights": [0, 0]}}},
        "spec.phases[2].objectives.hiddenStates.layerWeights",
        "all 0",
        "Give some layer a weight",
        "spec.phases[2].objectives.hiddenStates.layerWeights",
        "give some layer a weight above 0",
    ),
    "a ratio to nothing": Wrong(
        {DISTILL: {"teacherLogits": {"weight": 0.1, "weighting": "GradientRatio"}}},
        "spec.phases[2].objectives.teacherLogits.weighting",
        "crossEntropy has no weight here",
        "weighting: Fixed",
        "spec.phases[2].objectives",
        "or write `weighting: Fixed`",
    ),
    "masked input that nobody masks": Wrong(
        {DISTILL: {"teacherLogits": {"weight": 1, "input": "Masked"}}},
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
    "a target of the bandit": Wrong(
        {"spec.data.mixture": {"policy": "Bandit", "target": "web"}},
        "spec.data.mixture.target",
        "no meaning with policy Bandit",
        "policy: Influence",
        "spec.data.mixture.target",
        "remove it, or write `policy: Influence`",
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
        {**ONE_PHASE, "spec.phases.0.objectives": {"classification": WEIGHT}},
        "spec.phases[0].objectives.classification",
        "there are no labels",
        "Add spec.classification",
        "spec",
        "add spec.classification",
    ),
    "labels that nobody learns": Wrong(
        {
            "spec.classification": LABELS,
            **{f"spec.phases.{index}.objectives": {"hiddenStates": WEIGHT} for index in range(3)},
        },
        "spec.classification",
        "its head would never learn",
        "remove spec.classification",
        "spec.classification",
        "give the objective `classification` a weight",
    ),
    "a classifier of next tokens": Wrong(
        {**CLASSIFIER, "spec.phases.0.objectives": {"classification": WEIGHT, "crossEntropy": WEIGHT}},
        "spec.phases[0].objectives.crossEntropy",
        "labels and no next token",
        "Set its weight to 0",
        "spec.classification",
        "remove crossEntropy, maskedDiffusion and teacherLogits",
    ),
    "a classifier with documents apart": Wrong(
        {**CLASSIFIER, "spec.data.documents": "Separate"},
        "spec.data.documents",
        "no documents to be separated",
        "documents: Joined",
        "spec.data.documents",
        "write `documents: Joined`",
    ),
    "a classifier that follows influence": Wrong(
        {**CLASSIFIER, "spec.data.mixture": {"policy": "Influence"}},
        "spec.data.mixture.policy",
        "measured by next tokens",
        "policy: Static",
        "spec.data.mixture.policy",
        "write `policy: Static`",
    ),
    "a preset's classifier for stock transformers": Wrong(
        {**CLASSIFIER, "spec.model": {"preset": "BitNetLlama-1M", "tokenizer": "hf://a/b"}},
        "spec.export.formats",
        "cannot run what `classification of a BitNetLlama-1M` makes",
        "formats: [Packed]",
        "spec.export.formats",
        "write `formats: [Packed]`",
    ),
    "a classifier with SubLN for stock transformers": Wrong(
        {**CLASSIFIER, "spec.quantization.subLN": "OutputProjections"},
        "spec.export.formats",
        "`classification with subLN: OutputProjections`",
        "formats: [Packed]",
        "spec.export.formats",
        "write `formats: [Packed]`",
    ),
    "a label twice": Wrong(
        {**CLASSIFIER, "spec.classification": {"labels": ["good", "good"]}},
        "spec.classification.labels",
        "two labels are named 'good'",
        "a name of its own",
        "spec.classification.labels[1]",
        "Duplicate value",
    ),
    "a cache of whole vocabularies": Wrong(
        {"spec.teacher.cacheLogits": True, DISTILL: {"teacherLogits": WEIGHT}},
        "spec.teacher.cacheLogits",
        "'distill' compares the whole vocabulary",
        "topK",
        "spec.teacher.cacheLogits",
        "give teacherLogits a topK",
    ),
    "a cache of nothing": Wrong(
        {"spec.teacher.cacheLogits": True, DISTILL: {"hiddenStates": WEIGHT}},
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
    "Haar packed for stock transformers": Wrong(
        {"spec.quantization.weights": "Haar", "spec.export.formats": ["HuggingFacePacked"]},
        "spec.export.formats",
        "`weights: Haar` makes, and HuggingFacePacked is for that",
        "formats: [Packed]",
        "spec.export.formats",
        "write `formats: [Packed]`",
    ),
    "Haar in ternary GGUF": Wrong(
        {"spec.quantization.weights": "Haar", "spec.export.formats": ["GGUF-F16", "GGUF-TQ2_0"]},
        "spec.export.formats",
        "and GGUF-TQ2_0 holds ternary ones",
        "GGUF-F16 in its place",
        "spec.export.formats",
        "write GGUF-F16 in place",
    ),
    **{
        f"{key} for llama.cpp": Wrong(
            {**changes, "spec.export.formats": ["GGUF-TQ2_0", "GGUF-F16"]},
            "spec.export.formats",
            f"llama.cpp cannot run what `{key}` makes, and GGUF-TQ2_0 and GGUF-F16 are for that",
            "formats: [Packed]",
            "spec.export.formats",
            "write `formats: [Packed]`",
        )
        for key, changes in {
            "lowRankCorrection": {"spec.quantization.lowRankCorrection": {"ratio": 0.1}},
            "subLN: OutputProjections": {"spec.quantization.subLN": "OutputProjections"},
            "classification": CLASSIFIER,
            "preset: BitNetLlama-1M": {"spec.model": {"preset": "BitNetLlama-1M", "tokenizer": "hf://a/b"}},
        }.items()
    },
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
