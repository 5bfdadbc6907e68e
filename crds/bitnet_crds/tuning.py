"""The tuning of a teacher before the run, as a person asks for it, and what an API server checks of it."""

from pydantic import Field

from bitnet_crds.cel import Rule
from bitnet_crds.quantities import Quantity
from bitnet_crds.record import Record

TUNING = "TeacherTuning"
"""Names the tuning where a phase would be, as in `Adjustments.halvings`. No phase of a spec is called so."""


class Tune(Record):
    """Trains the teacher before the run, on the run's own text: not quantised, by crossEntropy alone, with
    AdamW, whose rate rises and then falls to 0 along half a cosine.

    The sources are mixed as spec.data weighs them, and what is held out there stays held out. The pods are
    those of the first phase. What comes out is kept in the run's folder and is the run's teacher; where it is
    there already, nothing is trained. Its tokens are none of spec.budget's.
    """

    tokens: Quantity
    """Training tokens, such as 500M. The last incomplete step is left out."""
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    """The peak learning rate: that of fine-tuning, a tenth of what a ternary student wants."""
    warmup_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of the tuning's steps in which the rate rises to its peak."""


_TOKENS = "quantity(string(self.teacher.tune.tokens))"
_STEP = "self.budget.globalBatchSize * self.data.sequenceLength"
_TUNED = "has(self.teacher) && has(self.teacher.tune)"

TUNING_RULES = [
    Rule(
        f"!({_TUNED}) || !isQuantity(string(self.teacher.tune.tokens)) || "
        f"{_TOKENS}.asApproximateFloat() >= double({_STEP}) && {_TOKENS}.compareTo(quantity('1E')) <= 0",
        "the teacher's tuning has less than one step of globalBatchSize x sequenceLength, or more than 1E "
        "tokens: write more, or fewer",
        field_path=".teacher.tune.tokens",
    ),
    Rule(
        f"!({_TUNED}) || !has(self.classification)",
        "a teacher is tuned on next tokens, and the text is labelled for a classifier: remove it",
        field_path=".teacher.tune",
    ),
]
"""Of the block `spec`."""
