"""Runs that are refused for what they say of their teacher's tuning."""

from written_runs import LABELS, WEIGHT
from wrong import Wrong

WRONG_TUNING: dict[str, Wrong] = {
    "a tuning of a classifier's teacher": Wrong(
        {
            "spec.classification": LABELS,
            "spec.phases.0.objectives": {"classification": WEIGHT},
            "spec.phases.1.objectives": {"classification": WEIGHT},
            "spec.phases.2.objectives": {"classification": WEIGHT, "hiddenStates": WEIGHT},
            "spec.teacher.tune": {"tokens": "1G"},
        },
        "spec.teacher.tune",
        "tuned on next tokens",
        "Remove it, and name a teacher that is tuned",
        "spec.teacher.tune",
        "the text is labelled for a classifier: remove it",
    ),
}
"""By what is wrong with them."""
