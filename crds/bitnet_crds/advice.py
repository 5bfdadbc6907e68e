"""What is known against a run's hyperparameters: advice, never errors. Pure."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from bitnet_crds.plan import Plan
from bitnet_crds.spec import BitNetRunSpec

LOW_LEARNING_RATE = 3e-4
"""At and below this, quantisation-aware training was measured to be far from its best."""
FAR_APART = 4
"""Two warmups are far apart when one is more than so many times as long as the other."""
LARGE_DISTILLATION = 10
"""weight * T^2 of the teacher counts as large above so many times the weight of cross-entropy."""

_MEASURED = (
    "measured on SmolLM2-135M, 24.6M tokens, AdamW; perplexity on unseen prose, 35.8 when fine-tuned in bf16"
)


@dataclass(frozen=True)
class Advice:
    """One thing that will probably cost quality or time, though the run can be carried out as written."""

    field: str
    """Path as one writes it in YAML, such as `spec.optimizer.adamLearningRate`."""
    why: str
    """What is known against it, with the value found."""
    fix: str
    """What to write instead."""
    source: str
    """Where that is known from: a paper, a measurement, or arithmetic."""

    def __str__(self) -> str:
        return f"{self.field}: {self.why}. {self.fix}. ({self.source})"


def advise(spec: BitNetRunSpec, plan: Plan) -> tuple[Advice, ...]:
    """Everything known against the run, in the order of the spec. `plan` is the ledger of `spec`."""
    return tuple(
        advice
        for check in (_lambda_warmup, _learning_rate, _schedule, _distillation, _checkpoints)
        for advice in check(spec, plan)
    )


def _lambda_warmup(spec: BitNetRunSpec, plan: Plan) -> Iterator[Advice]:
    warmup = spec.quantization.lambda_warmup
    fifth = max(1, plan.total_steps // 5)
    if warmup is None:
        yield Advice(
            "spec.quantization.lambdaWarmup",
            "weights are ternary from the first step, and the pretrained model has to be learnt anew: "
            "perplexity was 224 so, and 126 with quantisation blended in over a fifth of the steps",
            f"Write lambdaWarmup: {{steps: {fifth}}}",
            _MEASURED,
        )
    elif warmup.steps >= plan.total_steps:
        yield Advice(
            "spec.quantization.lambdaWarmup.steps",
            f"lambda reaches 1 at step {warmup.steps} but the run has {plan.total_steps}: it ends before "
            "it has trained the ternary model that it exports",
            f"Write about {fifth}, a fifth of the steps",
            "arithmetic",
        )


def _learning_rate(spec: BitNetRunSpec, _: Plan) -> Iterator[Advice]:
    rate = spec.optimizer.adam_learning_rate
    if rate <= LOW_LEARNING_RATE:
        yield Advice(
            "spec.optimizer.adamLearningRate",
            f"{rate:g} is a rate for fine-tuning; a ternary weight moves only when the one below crosses "
            "a threshold, and wants 5 to 10 times that: perplexity was 442 at 0.0003 and 224 at 0.001",
            "Try 0.001 to 0.004",
            _MEASURED,
        )


def _schedule(spec: BitNetRunSpec, plan: Plan) -> Iterator[Advice]:
    warmup, blended = spec.schedule.warmup_steps, spec.quantization.lambda_warmup
    if warmup > plan.learning_rate.decay_start:
        yield Advice(
            "spec.schedule.warmupSteps",
            f"the learning rate still rises at step {plan.learning_rate.decay_start}, where its decay begins "
            f"(the run has {plan.total_steps} steps): it never reaches its peak",
            f"Write about {max(1, plan.total_steps // 20)}, or a smaller decayFraction",
            "arithmetic",
        )
    elif (
        blended is not None
        and blended.steps < plan.total_steps
        and max(warmup, blended.steps) > FAR_APART * min(warmup, blended.steps)
    ):
        yield Advice(
            "spec.schedule.warmupSteps",
            f"the learning rate rises over {warmup} steps and lambda over {blended.steps}; they are best of "
            "about one length, since the weights have to follow their quantisation",
            f"Write about {blended.steps}",
            "practice, not measured here",
        )


def _distillation(spec: BitNetRunSpec, _: Plan) -> Iterator[Advice]:
    for index, phase in enumerate(spec.phases):
        teacher, cross_entropy = phase.objectives.teacher_logits, phase.objectives.cross_entropy
        if teacher is None or cross_entropy is None or cross_entropy.weight == 0:
            continue
        effective = teacher.weight * teacher.temperature**2
        # A rounding error of the square must not turn "ten times" into "more than ten times".
        limit = LARGE_DISTILLATION * cross_entropy.weight
        if effective > limit and not math.isclose(effective, limit):
            yield Advice(
                f"spec.phases[{index}].objectives.teacherLogits",
                f"the loss has T^2 inside: weight {teacher.weight:g} at temperature {teacher.temperature:g} "
                f"weighs {effective:g} against {cross_entropy.weight:g} for crossEntropy",
                f"Write a weight of at most {_rounded_down(limit / teacher.temperature**2):g}, "
                "or a lower temperature",
                "arXiv 1503.02531, section 2",
            )


def _checkpoints(spec: BitNetRunSpec, plan: Plan) -> Iterator[Advice]:
    if spec.checkpoint.every_steps >= plan.total_steps > 1:
        yield Advice(
            "spec.checkpoint.everySteps",
            f"the run has {plan.total_steps} steps and a checkpoint every {spec.checkpoint.every_steps}: a "
            "failure or a lost node would start it over",
            f"Write at most {max(1, plan.total_steps // 10)}",
            "arithmetic",
        )


def _rounded_down(number: float) -> float:
    """Three digits of a number above 0, and never more than it."""
    scale = 10.0 ** (2 - math.floor(math.log10(number)))
    return math.floor(number * scale) / scale
