"""The ledger: the one place where tokens become steps, phases, shapes and learning rates. Pure."""

import hashlib
import math
from fractions import Fraction
from typing import Literal

from bitnet_crds.errors import InvalidRun, Problem
from bitnet_crds.objectives import TEACHER_OBJECTIVES
from bitnet_crds.optimizer import DecayCurve, Schedule
from bitnet_crds.record import Record
from bitnet_crds.spec import BitNetRunSpec, Curve, Phase


class Shape(Record):
    """How one optimiser step is spread over machines.

    Sequences: workers * processes * micro batch * accumulation.
    """

    workers: int
    processes_per_worker: int
    micro_batch_size: int
    """Sequences in one forward and backward pass of one process."""
    accumulation: int
    """Forward and backward passes of one process in one optimiser step."""

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.workers * self.processes_per_worker

    @property
    def global_batch_size(self) -> int:
        """Sequences in one optimiser step."""
        return self.world_size * self.micro_batch_size * self.accumulation


class PlannedPhase(Record):
    """A phase with its step range: steps count from 0, and `end_step` is the first that is not in it."""

    name: str
    first_step: int
    end_step: int
    weights: dict[str, float]
    """Weight by objective, for every objective that the phase names; from its transition's last step on."""
    transition_steps: int
    """Steps, from the first on, in which the weights come over from the phase before; 0 where they step."""
    curve: Curve
    """How they come over."""
    mixture: dict[str, float]
    """Weight by source of text, for every source; with a policy other than Static, where the shares begin."""
    teacher: bool
    """Whether the teacher is in memory in this phase: where some step of it gives weight to an objective that
    asks it, so also while one fades out. It stays for the whole phase, which has one shape."""
    shape: Shape

    def blended(self, step: int) -> float:
        """How far the weights have come over in step `step` of the phase: above 0, and exactly 1 from the
        transition's last step on."""
        done = step - self.first_step + 1
        if done >= self.transition_steps:
            return 1.0
        return _along(self.curve, done / self.transition_steps)


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

    def at(self, step: int) -> float:
        """The rate used in step `step` (from 0): `peak` times the schedule's share."""
        return self.peak * self.share_at(step)

    def share_at(self, step: int) -> float:
        """The share of its peak that each rate has in step `step` (from 0), above 0 in the run and 0 after.

        It rises to 1 in the last warmup step, holds, and falls so that the step after the last would have
        `final_share`: f + (1 - f) * g(p), p being the part of the decay that is over, and g(p) = 1 - p,
        (1 + cos(pi p)) / 2 or 1 - sqrt(p). Where warmup and decay overlap, the smaller holds. Sources: arXiv
        2404.06395 (warmup-stable-decay), 1608.03983 (cosine), 2405.18392 (1 - sqrt).
        """
        if step >= self.total_steps:
            return 0.0
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
        return _along(self.curve, min(1.0, step / self.steps) if self.steps else 1.0)


class Plan(Record):
    """What will happen, step by step. Operator, trainer and `bitnetctl plan` all read this."""

    total_steps: int
    tokens: int
    """Tokens really trained: total_steps * tokens_per_step."""
    sequence_length: int
    global_batch_size: int
    """Sequences in one optimiser step."""
    phases: tuple[PlannedPhase, ...]
    teacher_start: int | None = None
    """First step with the teacher in memory; none without one."""
    learning_rate: LearningRateSchedule
    quantization_lambda: LambdaSchedule

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimiser step, the same in every phase."""
        return self.global_batch_size * self.sequence_length

    @property
    def teacher_loading(self) -> Literal["Never", "AtStart", "Deferred"]:
        """When the teacher is loaded first; Deferred: at step `teacher_start`."""
        if self.teacher_start is None:
            return "Never"
        return "Deferred" if self.teacher_start else "AtStart"

    @property
    def ledger_hash(self) -> str:
        """Names the ledger in checkpoints: a checkpoint is resumed only under the ledger that wrote it.

        Shapes are left out: the same run may go on with other workers.
        """
        ledger = self.model_dump_json(exclude={"phases": {"__all__": {"shape"}}})
        return hashlib.sha256(ledger.encode()).hexdigest()[:16]

    def phase_at(self, step: int) -> PlannedPhase:
        """The phase that step `step` (from 0) belongs to; the last one for the end of the run itself."""
        if step < 0:
            raise ValueError(f"step {step} is before the run begins; steps count from 0")
        return next((phase for phase in self.phases if step < phase.end_step), self.phases[-1])

    def weights_at(self, step: int) -> dict[str, float]:
        """Weight by objective in step `step` (from 0), for every objective named in its phase and, while the
        transition lasts, in the phase before.

        before + (own - before) * p, p being as far as the phase is `blended`; an objective that one of the
        two does not name has 0 there. In the transition's last step they are the phase's own, to the bit.
        """
        phase = self.phase_at(step)
        if step - phase.first_step >= phase.transition_steps:
            return dict(phase.weights)
        before, own = self.phases[self.phases.index(phase) - 1].weights, phase.weights
        share = phase.blended(step)
        return {
            name: own.get(name, 0.0)
            if share == 1
            else before.get(name, 0.0) + (own.get(name, 0.0) - before.get(name, 0.0)) * share
            for name in own | before
        }


def plan(spec: BitNetRunSpec) -> Plan:
    """Works out the ledger of a run.

    Steps are whole: the budget is cut down to whole steps, and a phase that ends at p of the run ends at
    floor(p * steps). Raises InvalidRun where the budget holds no step, a phase gets none or fewer than its
    transition lasts, a phase's processes and micro batch do not divide the global batch, or influence would
    never be measured.
    """
    tokens_per_step = spec.data.sequence_length * spec.budget.global_batch_size
    total_steps = spec.budget.tokens // tokens_per_step
    if total_steps < 1:
        raise InvalidRun(
            [
                Problem(
                    "spec.budget.tokens",
                    f"{spec.budget.tokens} tokens are less than one step of {spec.budget.global_batch_size} "
                    f"sequences x {spec.data.sequence_length} tokens",
                    f"Write at least {tokens_per_step}",
                )
            ]
        )
    phases = _phases(spec, total_steps)
    _check_mixture(spec, total_steps)
    warmup = spec.quantization.lambda_warmup
    return Plan(
        total_steps=total_steps,
        tokens=total_steps * tokens_per_step,
        sequence_length=spec.data.sequence_length,
        global_batch_size=spec.budget.global_batch_size,
        phases=phases,
        teacher_start=next((phase.first_step for phase in phases if phase.teacher), None),
        learning_rate=LearningRateSchedule(
            peak=spec.optimizer.adam_learning_rate,
            warmup_steps=spec.schedule.warmup_steps,
            decay_start=_decay_start(spec.schedule, total_steps),
            total_steps=total_steps,
            curve=spec.schedule.curve,
            final_share=spec.schedule.final_share,
        ),
        quantization_lambda=LambdaSchedule(
            steps=warmup.steps if warmup else 0, curve=warmup.curve if warmup else "Linear"
        ),
    )


def _phases(spec: BitNetRunSpec, total_steps: int) -> tuple[PlannedPhase, ...]:
    phases: list[PlannedPhase] = []
    problems: list[Problem] = []
    first_step = 0
    for index, phase in enumerate(spec.phases):
        end_step = math.floor(phase.until * total_steps)
        if end_step == first_step:
            problems.append(
                Problem(
                    f"spec.phases[{index}].until",
                    f"phase {phase.name!r} has no step: it begins and ends at step {end_step} "
                    f"of {total_steps}",
                    "Give it a larger share, or the run more tokens",
                )
            )
        transition = phase.transition
        if transition is not None and transition.steps > end_step - first_step > 0:
            problems.append(
                Problem(
                    f"spec.phases[{index}].transition.steps",
                    f"{transition.steps} steps are more than the {end_step - first_step} of phase "
                    f"{phase.name!r}",
                    f"Write at most {end_step - first_step}",
                )
            )
        teacher = not TEACHER_OBJECTIVES.isdisjoint(spec.objectives_in(index))
        shape = _shape(spec, phase, teacher)
        if isinstance(shape, Problem):
            problems.append(shape)
        else:
            phases.append(
                PlannedPhase(
                    name=phase.name,
                    first_step=first_step,
                    end_step=end_step,
                    weights=phase.objectives.weights(),
                    transition_steps=transition.steps if transition else 0,
                    curve=transition.curve if transition else "Linear",
                    mixture=_mixture(spec, phase),
                    teacher=teacher,
                    shape=shape,
                )
            )
        first_step = end_step
    if problems:
        raise InvalidRun(dict.fromkeys(problems))
    return tuple(phases)


def _check_mixture(spec: BitNetRunSpec, total_steps: int) -> None:
    """Raises InvalidRun where a policy that measures would do nothing, the run being too short."""
    mixture = spec.data.mixture
    if mixture.policy != "Static" and mixture.measured_every >= total_steps:
        raise InvalidRun(
            [
                Problem(
                    "spec.data.mixture.everySteps",
                    f"{mixture.policy} measures first after {mixture.measured_every} steps, and the run "
                    f"has {total_steps}, so the shares would never change",
                    "Write fewer, give the run more tokens, or write `policy: Static`",
                )
            ]
        )


def _decay_start(schedule: Schedule, total_steps: int) -> int:
    """The first step of the decay; `total_steps` where there is none."""
    if schedule.name == "WarmupStableDecay":
        return total_steps - math.floor(Fraction(str(schedule.decaying)) * total_steps)
    return min(schedule.warmup_steps, total_steps)


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


def _along(curve: Curve, progress: float) -> float:
    """A way from 0 to 1, by how much of it in time has gone."""
    return progress if curve == "Linear" else (1 - math.cos(math.pi * progress)) / 2


def _mixture(spec: BitNetRunSpec, phase: Phase) -> dict[str, float]:
    return {
        source.name: source.weight if phase.mixture is None else phase.mixture.get(source.name, 0.0)
        for source in spec.data.sources
    }


def _shape(spec: BitNetRunSpec, phase: Phase, teacher: bool) -> Shape | Problem:
    """The step's spread in one phase, accumulation being whatever makes the global batch come out."""
    workers, processes = spec.workers.count, spec.workers.processes_per_worker
    micro = spec.workers.micro_batch_size
    if teacher and spec.teacher is not None:
        factor = Fraction(str(spec.teacher.batch_size_factor))
        resized = micro * factor
        if resized.denominator != 1:
            return Problem(
                "spec.teacher.batchSizeFactor",
                f"micro batch {micro} x {spec.teacher.batch_size_factor} is {float(resized):g}, not a whole "
                f"number of sequences (phase {phase.name!r})",
                "Choose a factor, or spec.workers.microBatchSize, so that it is",
            )
        micro = int(resized)
    one_pass = workers * processes * micro
    accumulation, rest = divmod(spec.budget.global_batch_size, one_pass)
    if rest or not accumulation:
        # A mend for this phase must not break the phases with the other micro batch.
        divisor = math.lcm(one_pass, workers * processes * spec.workers.micro_batch_size)
        nearest = max(1, spec.budget.global_batch_size // divisor) * divisor
        return Problem(
            "spec.budget.globalBatchSize",
            f"{spec.budget.global_batch_size} sequences cannot be split over {workers} workers x {processes} "
            f"processes x micro batch {micro} (phase {phase.name!r})",
            f"Write a multiple of {divisor}, such as {nearest}",
        )
    return Shape(
        workers=workers, processes_per_worker=processes, micro_batch_size=micro, accumulation=accumulation
    )
