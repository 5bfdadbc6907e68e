"""Runs that are refused for what they say of health, of resizing, and of a phase's own workers."""

from written_runs import ONE_PHASE, WEIGHT
from wrong import Wrong

_PLATEAU = {"windowTokens": "50M"}
_NO_FACTOR = {"spec.teacher.batchSizeFactor": ...}

WRONG_WATCH: dict[str, Wrong] = {
    "a plateau where the rate never holds": Wrong(
        {"spec.schedule": {"name": "Cosine"}, "spec.health": {"plateau": _PLATEAU}},
        "spec.health.plateau",
        "with Cosine it never does",
        "Write `name: WarmupStableDecay`",
        "spec.health.plateau",
        "write `name: WarmupStableDecay`",
    ),
    "a next phase after the only one": Wrong(
        {
            **ONE_PHASE,
            "spec.phases.0.objectives": {"crossEntropy": WEIGHT},
            "spec.health": {"plateau": {**_PLATEAU, "action": "NextPhase"}},
        },
        "spec.health.plateau.action",
        "none comes next",
        "Write `action: Stop`",
        "spec.health.plateau.action",
        "write `action: Stop`",
    ),
    "a window of nothing": Wrong(
        {"spec.health": {"plateau": {"windowTokens": 0}}},
        "spec.health.plateau.windowTokens",
        "0 tokens shows nothing",
        "Write some",
        "spec.health.plateau.windowTokens",
        "write some, such as 50M",
    ),
    "a window without end": Wrong(
        {"spec.health": {"plateau": {"windowTokens": "2E"}}},
        "spec.health.plateau.windowTokens",
        "'2E' is more than 1E",
        "Write a whole number",
        "spec.health.plateau.windowTokens",
        "write some, such as 50M",
    ),
    "an improvement by more than all of the loss": Wrong(
        {"spec.health": {"plateau": _PLATEAU | {"minImprovement": "100.1%"}}},
        "spec.health.plateau.minImprovement",
        "'100.1%' is not between 0% and 100%",
        "Write one such as 90%",
        "spec.health.plateau.minImprovement",
        "write at most that",
    ),
    "Auto without a GPU": Wrong(
        {"spec.workers.gpusPerWorker": 0, "spec.workers.microBatchSize": "Auto"} | _NO_FACTOR,
        "spec.workers.microBatchSize",
        "Auto measures a GPU's memory, and phase 'warmup' has none",
        "Write a number, or give it GPUs",
        "spec.workers.microBatchSize",
        "write a number, or give it GPUs",
    ),
    "Auto in a phase without a GPU": Wrong(
        {"spec.phases.0.workers": {"gpusPerWorker": 0, "microBatchSize": "Auto"}},
        "spec.phases[0].workers.microBatchSize",
        "phase 'warmup' has none",
        "Write a number, or give it GPUs",
        "spec.workers.microBatchSize",
        "write a number, or give it GPUs",
    ),
    "Auto, multiplied": Wrong(
        {"spec.workers.microBatchSize": "Auto"},
        "spec.teacher.batchSizeFactor",
        "measured with the teacher in memory (Auto)",
        "Remove it, or write a number",
        "spec.teacher.batchSizeFactor",
        "remove it, or write a number",
    ),
    "a micro batch in another word": Wrong(
        {"spec.workers.microBatchSize": "auto"} | _NO_FACTOR,
        "spec.workers.microBatchSize",
        "'auto' is no number of sequences",
        "Write a whole number from 1 to 1000000, or Auto",
        "spec.workers.microBatchSize",
        "should match '^Auto$'",
    ),
    "a phase's workers that change nothing": Wrong(
        {"spec.phases.0.workers": {}},
        "spec.phases[0].workers",
        "changes nothing",
        "Name count",
        "spec.phases[0].workers",
        "name count",
    ),
}
"""By what is wrong with them."""
