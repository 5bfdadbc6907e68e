"""When a run counts as sick, and what is done about it."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from bitnet_crds.errors import WrongValueError
from bitnet_crds.quantities import Percentage, Quantity
from bitnet_crds.record import Record

STRETCHES = 32
"""Into so many, of as many whole steps each, a plateau's window is cut. They begin with a phase."""


class NonFinite(Record):
    """What happens when a loss or gradient is not finite."""

    skip_steps: int = Field(default=3, ge=1, le=1000)
    """So many steps in a row are skipped (nothing of them reaches the weights); one more ends the segment."""
    rollbacks: int = Field(default=3, ge=0, le=100)
    """How often the run then goes back to its newest checkpoint from before the first of them, and on
    without the sequences of those steps. Once more, and it has failed."""
    learning_rate_factor: float = Field(default=0.5, gt=0, le=1)
    """Each time the learning rates are multiplied by this from that checkpoint on."""


class Plateau(Record):
    """What happens when the loss has stopped falling.

    The improvement over the last `windowTokens` is a Theil-Sen slope through medians of the loss, times the
    window, as a share of the loss. It is judged where the loss may be expected to fall by training alone: in
    one phase, after its transition, the learning rate's and lambda's warmup and a roll-back, and before the
    learning rate's decay.
    """

    window_tokens: Quantity
    """Tokens over which the loss is watched, such as 50M."""
    min_improvement: Percentage = Field(default="0.5%", validate_default=True)
    """Less than this is a plateau."""
    action: Literal["Alert", "Stop", "NextPhase"] = "Alert"
    """Alert: the condition LossPlateau says so. Stop: training ends here, and the model is evaluated and
    exported. NextPhase: the next phase begins here and has what is left of this one; in the last phase as
    Alert. The learning rate's schedule stays as planned."""

    @field_validator("window_tokens")
    @classmethod
    def _some_tokens(cls, tokens: int) -> int:
        if tokens < 1:
            raise WrongValueError("a window of 0 tokens shows nothing", "Write some, such as 50M")
        return tokens


class Health(Record):
    """When a run counts as sick."""

    non_finite: NonFinite = NonFinite()
    plateau: Plateau | None = None
    stall_seconds: Annotated[int, Field(ge=10, le=1_000_000)] = 600
    """So long a segment may go without a step while it trains, and its pods without coming up. Loading,
    evaluating and exporting may take six times as long. Then it is ended, and tried again where that may
    help."""
