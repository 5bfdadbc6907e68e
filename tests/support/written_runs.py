"""Runs as people write them, for whoever judges them: the contract and an API server alike.

Each is the full run of examples/ with some values changed.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, get_args

from bitnet_crds.spec import ExportFormat

Document = dict[str, Any]
Changes = Mapping[str, Any]
"""New value by path, such as `spec.phases.0.until`; `...` removes the key."""


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


WEIGHT = {"weight": 1}
ONE_PHASE = {"spec.teacher": ..., "spec.phases": [{"name": "all", "until": "100%"}]}
DISTILL = "spec.phases.2.objectives"
LABELS = {"labels": ["bad", "good"]}
CLASSIFIER = {
    **ONE_PHASE,
    "spec.classification": LABELS,
    "spec.phases.0.objectives": {"classification": WEIGHT},
}

RIGHT: dict[str, Changes] = {
    "as it is": {},
    "MuonClip": {"spec.optimizer": {"name": "MuonClip"}},
    "MuonClip in its own words": {
        "spec.optimizer": {
            "name": "MuonClip",
            "muonLearningRate": 0.005,
            "adamLearningRate": 1e-4,
            "clippingThreshold": 10,
            "clippingAlpha": 0,
        }
    },
    "a model in a bucket": {"spec.model": {"from": "gs://my-bucket.example.org/qwen/model.gguf"}},
    "a preset": {"spec.model": {"preset": "BitNetLlama-350M", "tokenizer": "gs://models/tokenizer"}},
    "a classifier": CLASSIFIER,
    "a classifier from a preset, with a teacher": {
        "spec.model": {"preset": "BitNetLlama-1M", "tokenizer": "file:///tokenizer"},
        "spec.export.formats": ["Packed"],
        "spec.classification": LABELS,
        "spec.phases.0.objectives": {"classification": WEIGHT},
        "spec.phases.1.objectives": {"classification": WEIGHT, "crossEntropy": {"weight": 0}},
        DISTILL: {"classification": WEIGHT, "attentionRelations": WEIGHT, "hiddenStates": WEIGHT},
    },
    "Haar, packed": {"spec.quantization.weights": "Haar", "spec.export.formats": ["Packed"]},
    "every format": {"spec.export.formats": list(get_args(ExportFormat))},
    "Haar in GGUF": {"spec.quantization.weights": "Haar", "spec.export.formats": ["GGUF-F16", "Packed"]},
    "a correction, not exported": {
        "spec.quantization.lowRankCorrection": {"ratio": 0.1},
        "spec.export.formats": [],
    },
    "a classifier with a correction": {
        **CLASSIFIER,
        "spec.quantization.lowRankCorrection": {"ratio": 0.1},
        "spec.export.formats": ["Packed"],
    },
    "SubLN for stock transformers": {"spec.quantization.subLN": "OutputProjections"},
    "documents apart": {"spec.data.documents": "Separate"},
    "text of the hub": {
        "spec.data.sources.0": {
            "name": "web",
            "uri": "hf://Organisation/fine.web-edu",
            "subset": "sample-10BT",
            "split": "train",
            "revision": "main",
            "field": "body",
        }
    },
    "text in a bucket, beside checkpoints there": {
        "spec.data.sources.0.uri": "gs://bucket/text",
        "spec.checkpoint.uri": "gs://bucket/text-runs",
    },
    "checkpoints that go with the run": {"spec.checkpoint.onDelete": "Remove"},
    "a micro batch found by trying": {
        "spec.workers.microBatchSize": "Auto",
        "spec.teacher.batchSizeFactor": ...,
    },
    "a micro batch found by trying in one phase, without GPUs in the others": {
        "spec.workers.gpusPerWorker": 0,
        "spec.teacher.resize": "Rescale",
        f"{DISTILL.removesuffix('.objectives')}.workers": {"gpusPerWorker": 1, "microBatchSize": "Auto"},
    },
    "bandit": {"spec.data.mixture": {"policy": "Bandit", "everySteps": 50, "smoothing": 0.3}},
    "influence": {"spec.data.mixture": {"policy": "Influence", "everySteps": 50, "target": "code"}},
    "a phase with a mixture of its own": {"spec.phases.1.mixture": {"code": 1, "web": 0}},
    "masked distillation, cached": {
        "spec.teacher.cacheLogits": True,
        DISTILL: {
            "maskedDiffusion": {"weight": 0, "mode": "Complementary"},
            "teacherLogits": {"weight": 1, "topK": 100, "tail": "Renormalized", "input": "Masked"},
        },
    },
    "a tuned teacher": {"spec.teacher.tune": {"tokens": "1G", "learningRate": 5e-5, "warmupFraction": 0}},
    "weights found by measuring": {
        DISTILL: {
            "crossEntropy": WEIGHT,
            "blockAttention": {"weight": 0.1, "weighting": "GradientRatio", "blockSize": 16},
            "hiddenStates": {"weight": 0.1, "distance": "Cosine", "layerWeights": [0, 1]},
        }
    },
    "distillation that fades out": {
        "spec.phases.1.objectives": {"teacherLogits": WEIGHT},
        DISTILL: {"crossEntropy": WEIGHT},
        "spec.phases.2.transition": {"steps": 100, "curve": "Cosine"},
    },
}
"""Runs that are taken, by what they show."""
