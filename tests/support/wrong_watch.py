"""Runs that are refused for what they say of health, of resizing, and of a phase's own workers."""

from written_runs import ONE_PHASE, WEIGHT
from wrong import Wrong

_PLATEAU = {"windowTokens": "50M"}

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
