"""How a learning rate and lambda move over the ledger's steps. Pure."""

import math

from bitnet_crds.optimizer import DecayCurve
from bitnet_crds.record import Record
from bitnet_crds.spec import Curve


class LearningRateSchedule(Record):
    """Warmup, peak and decay over the ledger's own horizon."""

    peak: float
    """AdamW's; Muon's own, in the spec, follows the same shares."""
    warmup_steps: int
    decay_start: int
    total_steps: int
    curve: DecayCurve
    """How the rate falls from `decay_start` on."""
    final_share: float
    """The share of the peak that it falls to."""
    reductions: tuple[tuple[int, float], ...] = ()
    """Step and factor: from that step on every rate is multiplied by it, after a roll-back."""

    def at(self, step: int) -> float:
        """The rate used in step `step` (from 0): `peak` times the schedule's share."""
        return self.peak * self.share_at(step)

    def share_at(self, step: int) -> float:
        """The share of its peak that each rate has in step `step` (from 0), above 0 in the run and 0 after.

        It rises to 1 in the last warmup step, holds, and falls so that the step after the last would have
        `final_share`: f + (1 - f) * g(p), p being the part of the decay that is over, and g(p) = 1 - p,
        (1 + cos(pi p)) / 2 or 1 - sqrt(p). Where warmup and decay overlap, the smaller holds, and all of it
        is multiplied by the `reductions` so far. Sources: arXiv
        2404.06395 (warmup-stable-decay), 1608.03983 (cosine), 2405.18392 (1 - sqrt).
        """
        if step >= self.total_steps:
            return 0.0
        reduced = math.prod(factor for first_step, factor in self.reductions if step >= first_step)
        return reduced * self._scheduled(step)

    def _scheduled(self, step: int) -> float:
        rising = (step + 1) / self.warmup_steps if step < self.warmup_steps else 1.0
        if step < self.decay_start:
            return rising
        # What is left rather than what is over: exact at both ends.
        left = (self.total_steps - step) / (self.total_steps - self.decay_start)
        falling = self.final_share + (1 - self.final_share) * _falling(self.curve, left)
        return min(rising, falling)


class LambdaSchedule(Record):
    """How far quantisation is blended in. A function of the global step alone, so that a resume cannot
    restart it."""

    steps: int
    """Steps until lambda is 1; 0 where it is 1 throughout."""
    curve: Curve

    def at(self, step: int) -> float:
        """lambda in step `step` (from 0): 0 in the first, 1 from step `steps` on."""
        return along(self.curve, min(1.0, step / self.steps) if self.steps else 1.0)


def _falling(curve: DecayCurve, left: float) -> float:
    """From 1 to 0, by how much of the way is left: the curve's g(1 - left).

    In forms that do not cancel: the last step of a long run is still above 0.
    """
    match curve:
        case "Linear":
            return left
        case "Cosine":
            return math.sin(math.pi / 2 * left) ** 2
        case "OneMinusSqrt":
            return left / (1 + math.sqrt(1 - left))


def along(curve: Curve, progress: float) -> float:
    """A way from 0 to 1, by how much of it in time has gone."""
    return progress if curve == "Linear" else (1 - math.cos(math.pi * progress)) / 2
