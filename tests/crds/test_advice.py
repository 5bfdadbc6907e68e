"""Advice: each piece is given where it belongs, not beside it, and an ordinary run gets none."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bitnet_crds import BitNetRun, parse_run, plan
from bitnet_crds.advice import Advice, advise
from written_runs import RIGHT, Changes
from written_runs import changed as written


def advice_on(document: dict[str, Any]) -> tuple[Advice, ...]:
    spec = parse_run(document).spec
    return advise(spec, plan(spec))


def test_the_full_run_needs_none(run: BitNetRun) -> None:
    assert advise(run.spec, plan(run.spec)) == ()


@pytest.mark.parametrize(
    ("path", "value", "field", "why", "fix"),
    [
        ("spec.optimizer.adamLearningRate", 1e-4, None, "0.0001 is a rate for fine-tuning", "0.001 to 0.004"),
        ("spec.optimizer.adamLearningRate", 3e-4, None, "0.0003 is a rate", "0.001 to 0.004"),
        ("spec.quantization.lambdaWarmup", ..., None, "ternary from the first step", "{steps: 3814}"),
        ("spec.quantization.lambdaWarmup.steps", 19_073, None, "the run has 19073", "about 3814"),
        ("spec.schedule.warmupSteps", 0, None, "over 0 steps and lambda over 1000", "about 1000"),
        ("spec.schedule.warmupSteps", 4001, None, "over 4001 steps", "about 1000"),
        ("spec.schedule.warmupSteps", 16_000, None, "never reaches its peak", "about 953"),
        (
            "spec.phases.2.objectives.teacherLogits",
            {"weight": 5, "temperature": 5},
            "spec.phases[2].objectives.teacherLogits",
            "weight 5 at temperature 5 weighs 125 against 0.5",
            "at most 0.2",
        ),
        (
            "spec.teacher.tune",
            {"tokens": "11G"},
            "spec.teacher.tune.tokens",
            "tuned on 10,999,562,240 tokens, and the student trained on 9,999,745,024",
            "at most 9999745024",
        ),
        ("spec.checkpoint.everySteps", 19_073, None, "start it over", "at most 1907"),
    ],
)
def test_advice(changed: Any, path: str, value: Any, field: str | None, why: str, fix: str) -> None:
    (advice,) = advice_on(changed(path, value))
    assert advice.field == field or advice.field == path
    assert why in advice.why
    assert fix in advice.fix
    assert advice.source
    assert str(advice).startswith(f"{advice.field}: {advice.why}. ")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.optimizer.adamLearningRate", 4e-4),
        ("spec.quantization.lambdaWarmup.steps", 4000),
        ("spec.schedule.warmupSteps", 250),
        ("spec.schedule.warmupSteps", 4000),
        ("spec.phases.2.objectives.teacherLogits", {"weight": 0.2, "temperature": 5}),
        ("spec.phases.2.objectives.crossEntropy", ...),
        ("spec.teacher.tune", {"tokens": "10G"}),
        ("spec.checkpoint.everySteps", 19_072),
    ],
)
def test_no_advice_on_this_side_of_the_line(changed: Any, path: str, value: Any) -> None:
    assert advice_on(changed(path, value)) == ()


@pytest.mark.parametrize(
    ("model", "rate", "why", "fix"),
    [
        ({"preset": "BitNetLlama-135M"}, 0.03, "0.03 is more than 0.02, which does well", "Write 0.02"),
        ({"preset": "BitNetLlama-350M"}, 0.02, "0.02 is more than 0.01", "Write 0.01"),
        ({"preset": "BitNetLlama-1.7B"}, 0.01, "0.01 is more than 0.005", "Write 0.005"),
        ({"from": "hf://a/b"}, 0.03, "0.03 is more than 0.02, which does well with small", "0.02 or less"),
    ],
)
def test_muons_rate_by_size(full_run: dict[str, Any], model: Any, rate: float, why: str, fix: str) -> None:
    tokenizer = {"tokenizer": "hf://a/b"} if "preset" in model else {}

    def on(rate: float) -> list[Advice]:
        optimizer = {"name": "MuonClip", "muonLearningRate": rate, "adamLearningRate": 1e-4}
        run = written(full_run, {"spec.model": model | tokenizer, "spec.optimizer": optimizer})
        return [advice for advice in advice_on(run) if "optimizer" in advice.field]

    (advice,) = on(rate)
    assert advice.field == "spec.optimizer.muonLearningRate"
    assert why in advice.why
    assert fix in advice.fix
    assert on(float(advice.fix.split()[1])) == []


def test_following_the_advice_silences_it(changed: Any) -> None:
    before = advice_on(changed("spec.phases.2.objectives.teacherLogits", {"weight": 7, "temperature": 3}))
    weight = float(before[0].fix.split("at most ")[1].split(",")[0])
    after = advice_on(changed("spec.phases.2.objectives.teacherLogits", {"weight": weight, "temperature": 3}))
    assert after == ()


@given(
    cross_entropy=st.floats(0, 1_000_000, exclude_min=True),
    teacher=st.floats(0, 1_000_000, exclude_min=True),
    temperature=st.floats(0, 1000, exclude_min=True),
)
@example(cross_entropy=1e-310, teacher=1.0, temperature=1.0)
@example(cross_entropy=5e-324, teacher=1e6, temperature=1000.0)
@example(cross_entropy=1.0, teacher=1.0, temperature=5e-324)
def test_a_weight_may_be_as_small_as_a_number_can_be(
    full_run: dict[str, Any], cross_entropy: float, teacher: float, temperature: float
) -> None:
    objectives = {
        "crossEntropy": {"weight": cross_entropy},
        "teacherLogits": {"weight": teacher, "temperature": temperature},
    }
    for advice in advice_on(written(full_run, {DISTILL: objectives})):
        mend, _, most = advice.fix.partition(" of at most ")
        if most:
            assert 0 < float(most.split(",")[0]) <= teacher
        else:
            assert mend.startswith("Give crossEntropy a larger weight")


PRESET = {"preset": "BitNetLlama-0.6B", "tokenizer": "hf://a/b"}
DISTILL = "spec.phases.2.objectives"
WEB_ALONE = {f"spec.phases.{index}.mixture": {"web": 1} for index in range(3)}


@pytest.mark.parametrize(
    ("changes", "field", "why", "fix"),
    [
        ({"spec.model": PRESET}, "spec.budget.tokens", "few for a BitNetLlama-0.6B", "about 12000M"),
        (
            {
                "spec.quantization.lowRankCorrection": {"ratio": 0.1},
                "spec.export.formats": [],
                f"{DISTILL}.hiddenStates": {"weight": 1},
                "spec.model": {**PRESET, "preset": "BitNetLlama-135M"},
            },
            "spec.quantization.lowRankCorrection",
            "they stay random",
            "a pretrained model",
        ),
        (
            {
                "spec.quantization.subLN": "OutputProjections",
                "spec.teacher": ...,
                f"{DISTILL}.teacherLogits": ...,
            },
            "spec.quantization.subLN",
            "OutputProjections changes what the pretrained model computes",
            "teacherLogits",
        ),
        (
            {
                **RIGHT["a classifier"],
                "spec.quantization.subLN": "AllProjections",
            },
            "spec.quantization.subLN",
            "no phase distils",
            "attentionRelations or hiddenStates",
        ),
        (
            {
                f"{DISTILL}.teacherLogits": {"weight": 1},
                f"{DISTILL}.crossEntropy.weight": 0.01,
            },
            f"{DISTILL}.teacherLogits",
            "weight 1 at temperature 1 weighs 1 against 0.01",
            "at most 0.1",
        ),
        (
            {"spec.quantization.lowRankCorrection": {"ratio": 0.1}, "spec.export.formats": []},
            "spec.quantization.lowRankCorrection",
            "no phase compares it with the teacher's",
            "hiddenStates",
        ),
        (
            WEB_ALONE | {"spec.phases.1.mixture": {"web": 1, "code": 0}},
            "spec.data.sources[1]",
            "no phase's mixture gives 'code' weight",
            "Give it some in a phase, or remove it",
        ),
        (
            {f"{DISTILL}.maskedDiffusion": {"weight": 1, "maskProbability": 0.81}},
            f"{DISTILL}.maskedDiffusion.maskProbability",
            "of 100 tokens 81 are masked and predicted from the 19 left",
            "0.05 to 0.8",
        ),
        (
            {f"{DISTILL}.maskedDiffusion": {"weight": 1, "maskProbability": 0.04}},
            f"{DISTILL}.maskedDiffusion.maskProbability",
            "few to learn from",
            "0.05 to 0.8",
        ),
        # Trap 1: no key silently does nothing.
        (
            {"spec.schedule": {"warmupSteps": 1000, "decayFraction": 0, "finalShare": 0.1}},
            "spec.schedule.finalShare",
            "the rate never falls",
            "decayFraction above 0",
        ),
        (
            {"spec.schedule": {"warmupSteps": 1000, "decayFraction": 0, "decayCurve": "Cosine"}},
            "spec.schedule.decayCurve",
            "the rate never falls",
            "decayFraction above 0",
        ),
        (
            {"spec.health.nonFinite": {"rollbacks": 0, "learningRateFactor": 0.9}},
            "spec.health.nonFinite.learningRateFactor",
            "never goes back",
            "some rollbacks",
        ),
        (
            {"spec.phases.2.workers": {"microBatchSize": 8}, "spec.teacher.batchSizeFactor": 0.5},
            "spec.teacher.batchSizeFactor",
            "writes its own microBatchSize (distill)",
            "Remove it",
        ),
    ],
)
def test_advice_on_parts_together(
    full_run: dict[str, Any], changes: Changes, field: str, why: str, fix: str
) -> None:
    (advice,) = advice_on(written(full_run, changes))
    assert advice.field == field.replace("phases.2", "phases[2]")
    assert why in advice.why
    assert fix in advice.fix


@pytest.mark.parametrize(
    "changes",
    [
        # A preset has nothing that ternary weights could spoil; nor is it advised to learn anew.
        {
            "spec.model": {**PRESET, "preset": "BitNetLlama-350M"},
            "spec.quantization.lambdaWarmup": ...,
        },
        {"spec.quantization.subLN": "OutputProjections"},
        {
            "spec.quantization.lowRankCorrection": {"ratio": 0.1},
            "spec.export.formats": [],
            f"{DISTILL}.hiddenStates": {"weight": 1},
            # Nothing that trains is ternary.
            "spec.optimizer.adamLearningRate": 1e-4,
        },
        {f"{DISTILL}.maskedDiffusion": {"weight": 1, "maskProbability": 0.8}},
        # What an API server writes where a person wrote nothing.
        {"spec.schedule": {"warmupSteps": 1000, "decayFraction": 0, "finalShare": 0}},
        {"spec.health.nonFinite": {"rollbacks": 0, "learningRateFactor": 0.5}},
        WEB_ALONE | {"spec.phases.1.mixture": {"code": 1}},
        {path: WEB_ALONE[path] for path in sorted(WEB_ALONE)[1:]},
        # A teacher is tuned on what spec.data says, whatever the phases do.
        WEB_ALONE | {"spec.teacher.tune": {"tokens": "1G"}},
        {f"{DISTILL}.teacherLogits": {"weight": 0.5, "temperature": 9, "weighting": "GradientRatio"}},
    ],
)
def test_no_advice_on_parts_that_go_together(full_run: dict[str, Any], changes: Changes) -> None:
    assert advice_on(written(full_run, changes)) == ()
