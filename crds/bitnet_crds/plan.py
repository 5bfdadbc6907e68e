"""The ledger: the one place where tokens become steps, phases, shapes and learning rates. Pure."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

from bitnet_crds.adjustments import Adjustments, Rollback
from bitnet_crds.errors import InvalidRun, Problem
from bitnet_crds.machines import micro_batch_of, pods_of
from bitnet_crds.objectives import TEACHER_OBJECTIVES
from bitnet_crds.optimizer import Schedule
from bitnet_crds.record import Record
from bitnet_crds.schedules import LambdaSchedule, LearningRateSchedule, along
from bitnet_crds.shapes import Shape, shape_of
from bitnet_crds.spec import BitNetRunSpec, Curve, Phase
from bitnet_crds.tuning import TUNING
from bitnet_crds.tuning_plan import TuningPlan, plan_tuning


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
    auto: bool = False
    """Whether the shape's micro batch is only the largest that may be, and the trainer is to find the largest
    that fits; false again once that was found."""
    new_pods: bool = False
    """Whether it begins in other pods than the phase before, which ends with a checkpoint."""

    def blended(self, step: int) -> float:
        """How far the weights have come over in step `step` of the phase: above 0, and exactly 1 from the
        transition's last step on."""
        done = step - self.first_step + 1
        if done >= self.transition_steps:
            return 1.0
        return along(self.curve, done / self.transition_steps)


class Plan(Record):
    """What will happen, step by step. Operator, trainer and `bitnetctl plan` all read this."""

    ledger_hash: str
    """Names the ledger in checkpoints: a checkpoint is resumed only under the ledger that wrote it.

    Shapes and adjustments are left out: the same run may go on with other workers, or after a roll-back.
    """
    total_steps: int
    tokens: int
    """Tokens really trained: end_step * tokens_per_step."""
    end_step: int
    """The step before which training ends: total_steps, or earlier where the loss had stopped falling."""
    sequence_length: int
    global_batch_size: int
    """Sequences in one optimiser step."""
    phases: tuple[PlannedPhase, ...]
    teacher_start: int | None = None
    """First step with the teacher in memory; none without one."""
    learning_rate: LearningRateSchedule
    quantization_lambda: LambdaSchedule
    tuning: TuningPlan | None = None
    """What the teacher is tuned by before step 0; its steps are none of the run's."""
    rollbacks: tuple[Rollback, ...] = ()
    """What the run went back for so far; checkpoints that it left behind are not gone on from."""

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

    def pods_end(self, step: int) -> int:
        """The step before which the pods of step `step` end: the next phase in others, or the run's end."""
        ahead = (phase.first_step for phase in self.phases if phase.new_pods and phase.first_step > step)
        return min((first for first in ahead if first < self.end_step), default=self.end_step)

    def batch_at(self, step: int) -> int:
        """Which of the run's global batches (from 0) step `step` trains on: the step-th of those that no
        roll-back passes over."""
        batch, behind = step, 0
        for rollback in sorted(self.rollbacks, key=lambda rollback: rollback.first_batch):
            # A later one may reach over an earlier one, whose batches it never met.
            first, end = max(rollback.first_batch, behind), rollback.first_batch + rollback.batches
            if batch >= first:
                batch += max(0, end - first)
            behind = max(behind, end)
        return batch

    def passed_over_before(self, step: int) -> int:
        """Batches that are passed over between the steps before step `step` and it."""
        return self.batch_at(step) - (self.batch_at(step - 1) + 1 if step else 0)

    def settled(self, phase: PlannedPhase) -> int:
        """From which step on the phase's loss says something of training alone: after its transition and the
        warmups."""
        return max(
            phase.first_step + phase.transition_steps,
            self.learning_rate.warmup_steps,
            self.quantization_lambda.steps,
        )

    def fitted(self, micro_batches: Mapping[str, int]) -> "Plan":
        """The plan with the micro batches that were found to fit, by phase, in those that are `auto`."""

        def found(name: str, shape: Shape, auto: bool) -> dict[str, Any]:
            if not auto or name not in micro_batches:
                return {}
            return {"shape": shape.at_most(micro_batches[name]), "auto": False}

        tuning = self.tuning
        if tuning is not None:
            tuning = tuning.model_copy(update=found(TUNING, tuning.shape, tuning.auto))
        phases = (
            phase.model_copy(update=found(phase.name, phase.shape, phase.auto)) for phase in self.phases
        )
        return self.model_copy(update={"phases": tuple(phases), "tuning": tuning})

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


NO_ADJUSTMENTS = Adjustments()


def plan(spec: BitNetRunSpec, adjustments: Adjustments = NO_ADJUSTMENTS) -> Plan:
    """Works out the ledger of a run, as it stands after what befell it.

    Steps are whole: the budget is cut down to whole steps, and a phase that ends at p of the run ends at
    floor(p * steps). Raises InvalidRun where the budget or the teacher's tuning holds no step, a phase gets
    none or fewer than its transition lasts, a phase's processes and micro batch do not divide the global
    batch, or influence would never be measured.
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
    planned = Plan(
        ledger_hash="",
        total_steps=total_steps,
        tokens=total_steps * tokens_per_step,
        end_step=total_steps,
        sequence_length=spec.data.sequence_length,
        global_batch_size=spec.budget.global_batch_size,
        phases=phases,
        teacher_start=_teacher_start(phases),
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
        tuning=plan_tuning(spec, phases[0].shape, auto=phases[0].auto),
    )
    return _adjusted(planned, adjustments).model_copy(update={"ledger_hash": ledger_hash(planned)})


def ledger_hash(planned: Plan) -> str:
    """What `Plan.ledger_hash` of a ledger is that nothing befell yet."""
    # A run that tunes no teacher goes on from what it wrote before there was such a thing.
    tuning: bool | set[str] = {"shape", "auto"} if planned.tuning is not None else True
    ledger = planned.model_dump_json(
        exclude={"phases": {"__all__": {"shape", "auto", "new_pods"}}, "tuning": tuning}
    )
    return hashlib.sha256(ledger.encode()).hexdigest()[:16]


def _adjusted(planned: Plan, adjustments: Adjustments) -> Plan:
    """The ledger after what befell the run."""
    planned = planned.fitted(adjustments.micro_batches)
    phases, first_step = [], 0
    for phase in planned.phases:
        shape = _halved(phase.shape, adjustments.halvings.get(phase.name, 0))
        # The next phase has what is left of one that ended early. The last one has nobody to leave it to.
        end_step = phase.end_step
        if phase is not planned.phases[-1]:
            end_step = min(end_step, adjustments.phase_ends.get(phase.name, end_step))
        end_step = max(end_step, first_step)
        update = {"first_step": first_step, "end_step": end_step, "shape": shape}
        phases.append(phase.model_copy(update=update))
        first_step = end_step
    tuning = planned.tuning
    if tuning is not None:
        shape = _halved(tuning.shape, adjustments.halvings.get(TUNING, 0))
        tuning = tuning.model_copy(update={"shape": shape})
    end_step = planned.total_steps if adjustments.end_step is None else adjustments.end_step
    reductions = tuple(
        (rollback.checkpoint_step, rollback.learning_rate_factor) for rollback in adjustments.rollbacks
    )
    return planned.model_copy(
        update={
            "phases": tuple(phases),
            "teacher_start": _teacher_start(phases),
            "end_step": end_step,
            "tokens": end_step * planned.tokens_per_step,
            "learning_rate": planned.learning_rate.model_copy(update={"reductions": reductions}),
            "tuning": tuning,
            "rollbacks": adjustments.rollbacks,
        }
    )


def _halved(shape: Shape, times: int) -> Shape:
    for _ in range(times):
        shape = shape.halved() or shape
    return shape


def _teacher_start(phases: Sequence[PlannedPhase]) -> int | None:
    return next((phase.first_step for phase in phases if phase.teacher), None)


def _phases(spec: BitNetRunSpec, total_steps: int) -> tuple[PlannedPhase, ...]:
    phases: list[PlannedPhase] = []
    problems: list[Problem] = []
    first_step, had_teacher = 0, False
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
        shape = shape_of(spec, index, teacher)
        new_pods = index > 0 and (
            pods_of(spec, index) != pods_of(spec, index - 1)
            or (spec.teacher is not None and spec.teacher.resize == "Rescale" and teacher != had_teacher)
        )
        had_teacher = teacher
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
                    auto=micro_batch_of(spec, index) == "Auto",
                    new_pods=new_pods,
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


def _mixture(spec: BitNetRunSpec, phase: Phase) -> dict[str, float]:
    return {
        source.name: source.weight if phase.mixture is None else phase.mixture.get(source.name, 0.0)
        for source in spec.data.sources
    }
