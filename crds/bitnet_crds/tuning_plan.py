"""The ledger of a teacher's tuning: steps, learning rates, shape. Pure."""

import math
from fractions import Fraction

from bitnet_crds.errors import InvalidRun, Problem
from bitnet_crds.record import Record
from bitnet_crds.schedules import LearningRateSchedule
from bitnet_crds.shapes import Shape
from bitnet_crds.spec import BitNetRunSpec


class TuningPlan(Record):
    """What the teacher is tuned by before the run. Its steps count from 0, and are none of the run's."""

    steps: int
    tokens: int
    """Tokens really trained: steps * tokens_per_step of the run."""
    learning_rate: LearningRateSchedule
    mixture: dict[str, float]
    """Weight by source of text."""
    shape: Shape
    """That of the first phase."""
    auto: bool = False
    """Whether its micro batch is yet to be found, as in `PlannedPhase.auto`."""


def plan_tuning(spec: BitNetRunSpec, shape: Shape, *, auto: bool) -> TuningPlan | None:
    """The tuning's part of the ledger, in pods of `shape`, whose micro batch is yet to be found where `auto`;
    None where no teacher is tuned.

    Raises InvalidRun where its tokens hold no step.
    """
    if spec.teacher is None or spec.teacher.tune is None:
        return None
    asked, tokens_per_step = spec.teacher.tune, spec.data.sequence_length * spec.budget.global_batch_size
    steps = asked.tokens // tokens_per_step
    if steps < 1:
        raise InvalidRun(
            [
                Problem(
                    "spec.teacher.tune.tokens",
                    f"{asked.tokens} tokens are less than one step of {spec.budget.global_batch_size} "
                    f"sequences x {spec.data.sequence_length} tokens",
                    f"Write at least {tokens_per_step}",
                )
            ]
        )
    warmup_steps = math.floor(Fraction(str(asked.warmup_fraction)) * steps)
    return TuningPlan(
        steps=steps,
        tokens=steps * tokens_per_step,
        learning_rate=LearningRateSchedule(
            peak=asked.learning_rate,
            warmup_steps=warmup_steps,
            decay_start=warmup_steps,
            total_steps=steps,
            curve="Cosine",
            final_share=0.0,
        ),
        mixture={source.name: source.weight for source in spec.data.sources},
        shape=shape,
        auto=auto,
    )
