"""What is known against a run's hyperparameters: advice, never errors. Pure."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context

from bitnet_crds.objectives import TEACHER_OBJECTIVES, Objectives
from bitnet_crds.plan import Plan
from bitnet_crds.spec import BitNetRunSpec
from bitnet_crds.without_effect import without_effect

LOW_LEARNING_RATE = 3e-4
"""At and below this, quantisation-aware training was measured to be far from its best."""
FAR_APART = 4
"""Two warmups are far apart when one is more than so many times as long as the other."""
LARGE_DISTILLATION = 10
"""weight * T^2 of the teacher counts as large above so many times the weight of cross-entropy."""
FEW_MASKED, MANY_MASKED = 0.05, 0.8
"""Below the first share of masked tokens a step learns from few of them; above the second, from few that it
sees."""
MUON_RATES = ((150 * 10**6, 0.02), (450 * 10**6, 0.01), (math.inf, 0.005))
"""Muon's learning rate by a model's parameters: up to so many, so much."""
TOKENS_A_PARAMETER = 20
"""Training tokens for each parameter of a model trained from scratch, for the best of a given compute."""

_PARAMETERS = {
    "BitNetLlama-1M": 10**6,
    "BitNetLlama-135M": 135 * 10**6,
    "BitNetLlama-350M": 350 * 10**6,
    "BitNetLlama-0.6B": 600 * 10**6,
    "BitNetLlama-1.7B": 1700 * 10**6,
}
"""Of each preset, as its name has them."""
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
    return tuple(advice for check in _CHECKS for advice in check(spec, plan))


def _preset(spec: BitNetRunSpec, plan: Plan) -> Iterator[Advice]:
    if spec.model.preset is None:
        return
    wanted = TOKENS_A_PARAMETER * _PARAMETERS[spec.model.preset]
    if plan.tokens < wanted and spec.classification is None:
        yield Advice(
            "spec.budget.tokens",
            f"{plan.tokens:,} tokens are few for a {spec.model.preset} that begins with random weights: the "
            f"best of a given compute is about {TOKENS_A_PARAMETER} tokens a parameter",
            f"Write about {wanted // 10**6}M, or choose a smaller preset",
            "arXiv 2203.15556, table 3",
        )
    if spec.quantization.low_rank_correction is not None:
        yield Advice(
            "spec.quantization.lowRankCorrection",
            "all but the correction is frozen, and a preset begins with random weights: they stay random",
            "Remove it, or begin with a pretrained model",
            "arXiv 2412.07902",
        )


def _lambda_warmup(spec: BitNetRunSpec, plan: Plan) -> Iterator[Advice]:
    warmup = spec.quantization.lambda_warmup
    fifth = max(1, plan.total_steps // 5)
    if warmup is None:
        if spec.model.preset is not None:
            # There is nothing yet that ternary weights could spoil.
            return
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


def _mended(spec: BitNetRunSpec, plan: Plan) -> Iterator[Advice]:
    """What changes a pretrained model, without the distillation that mends it."""
    named = {name for index in range(len(plan.phases)) for name in spec.objectives_in(index)}
    output = "teacherLogits" if spec.classification is None else "hiddenStates"
    if spec.quantization.sub_ln != "None" and named.isdisjoint(TEACHER_OBJECTIVES):
        yield Advice(
            "spec.quantization.subLN",
            f"{spec.quantization.sub_ln} changes what the pretrained model computes, and no phase distils "
            "what it computed before",
            f"Give attentionRelations or {output} a weight in some phase, or write `subLN: None`",
            "arXiv 2510.13998",
        )
    if spec.quantization.low_rank_correction is not None and "hiddenStates" not in named:
        yield Advice(
            "spec.quantization.lowRankCorrection",
            "the correction is there to give each layer's output back what quantisation took, and no phase "
            "compares it with the teacher's",
            "Give hiddenStates a weight in some phase",
            "arXiv 2412.07902",
        )


def _sources(spec: BitNetRunSpec, plan: Plan) -> Iterator[Advice]:
    mixtures = [phase.mixture for phase in plan.phases]
    if plan.tuning is not None:
        mixtures.append(plan.tuning.mixture)
    for index, source in enumerate(spec.data.sources):
        if not any(mixture[source.name] for mixture in mixtures):
            yield Advice(
                f"spec.data.sources[{index}]",
                f"no phase's mixture gives {source.name!r} weight: nothing of it is trained on, and the "
                "model is measured on what is held out of it",
                "Give it some in a phase, or remove it",
                "arithmetic",
            )


def _learning_rate(spec: BitNetRunSpec, _: Plan) -> Iterator[Advice]:
    if spec.optimizer.name == "MuonClip":
        yield from _muon_rate(spec)
        return
    rate = spec.optimizer.adam_learning_rate
    # Beside a low-rank correction the ternary weights are frozen, and what trains is not ternary.
    if rate <= LOW_LEARNING_RATE and spec.quantization.low_rank_correction is None:
        yield Advice(
            "spec.optimizer.adamLearningRate",
            f"{rate:g} is a rate for fine-tuning; a ternary weight moves only when the one below crosses "
            "a threshold, and wants 5 to 10 times that: perplexity was 442 at 0.0003 and 224 at 0.001",
            "Try 0.001 to 0.004",
            _MEASURED,
        )


def _muon_rate(spec: BitNetRunSpec) -> Iterator[Advice]:
    rate, preset = spec.optimizer.muon_rate, spec.model.preset
    # How large a pretrained model is, its address does not say: it may be small.
    parameters = 0 if preset is None else _PARAMETERS[preset]
    most = next(good for size, good in MUON_RATES if parameters <= size)
    if rate > most:
        yield Advice(
            "spec.optimizer.muonLearningRate",
            f"{rate:g} is more than {most:g}, which does well with "
            + (f"a {preset}" if preset is not None else "small models, and larger ones want less")
            + ": 0.02 at 135M parameters, 0.01 at 350M, 0.005 from 0.6B on",
            f"Write {most:g}" + ("" if preset is not None else " or less"),
            "practice, not measured here",
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


def _objectives(spec: BitNetRunSpec, _: Plan) -> Iterator[Advice]:
    for index, phase in enumerate(spec.phases):
        field = f"spec.phases[{index}].objectives"
        yield from _distillation(f"{field}.teacherLogits", phase.objectives)
        yield from _masking(f"{field}.maskedDiffusion", phase.objectives)


def _distillation(field: str, objectives: Objectives) -> Iterator[Advice]:
    teacher, cross_entropy = objectives.teacher_logits, objectives.cross_entropy
    if teacher is None or cross_entropy is None or cross_entropy.weight == 0:
        return
    if teacher.weighting != "Fixed":
        return
    effective = teacher.weight * teacher.temperature**2
    # A rounding error of the square must not turn "ten times" into "more than ten times".
    limit = LARGE_DISTILLATION * cross_entropy.weight
    if effective > limit and not math.isclose(effective, limit):
        most = _rounded_down(limit / teacher.temperature**2)
        # A weight of 0 would leave the objective out.
        mend = f"Write a weight of at most {most:g}" if most else "Give crossEntropy a larger weight"
        yield Advice(
            field,
            f"the loss has T^2 inside: weight {teacher.weight:g} at temperature {teacher.temperature:g} "
            f"weighs {effective:g} against {cross_entropy.weight:g} for crossEntropy",
            mend + (", or a lower temperature" if teacher.temperature > 1 else ""),
            "arXiv 1503.02531, section 2",
        )


def _masking(field: str, objectives: Objectives) -> Iterator[Advice]:
    masked = objectives.masked_diffusion
    if masked is None or FEW_MASKED <= masked.mask_probability <= MANY_MASKED:
        return
    share = masked.mask_probability
    yield Advice(
        f"{field}.maskProbability",
        f"of 100 tokens {100 * share:g} are masked and predicted from the {100 * (1 - share):g} left: "
        + ("few to learn from" if share < FEW_MASKED else "little to predict them from"),
        f"Write a share from {FEW_MASKED:g} to {MANY_MASKED:g}",
        "arithmetic",
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


def _tuning(_: BitNetRunSpec, plan: Plan) -> Iterator[Advice]:
    if plan.tuning is not None and plan.tuning.tokens > plan.tokens:
        yield Advice(
            "spec.teacher.tune.tokens",
            f"the teacher is tuned on {plan.tuning.tokens:,} tokens, and the student trained on "
            f"{plan.tokens:,}: most of the run would go into the teacher",
            f"Write at most {plan.tokens}",
            "arithmetic",
        )


def _without_effect(spec: BitNetRunSpec, plan: Plan) -> Iterator[Advice]:
    for problem in without_effect(spec, plan):
        yield Advice(problem.field, problem.what, problem.fix, "arithmetic")


def _rounded_down(number: float) -> float:
    """Three digits of a number from 0 up, and never more than it."""
    # In decimals: the power of ten that a subnormal number would be divided by is no float.
    return float(Context(prec=3, rounding=ROUND_FLOOR).create_decimal_from_float(number))


_CHECKS = (
    _preset,
    _lambda_warmup,
    _mended,
    _sources,
    _learning_rate,
    _schedule,
    _objectives,
    _tuning,
    _checkpoints,
    _without_effect,
)
