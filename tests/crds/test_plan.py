"""The ledger, by property: phases tile the run, the global batch holds, and steps know nothing of workers."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds import BitNetRun, BitNetRunSpec, InvalidRun, Plan, parse_run, plan
from small_specs import phases_of, spec_of


@st.composite
def specs(draw: st.DrawFn) -> BitNetRunSpec:
    """Specs that have a plan: any world, batch, phases, teacher, schedules."""
    count, gpus = draw(st.integers(1, 32)), draw(st.integers(0, 8))
    factor = draw(st.sampled_from([1, 0.5, 0.25, 0.1]))
    micro = draw(st.integers(1, 16)) * math.ceil(1 / factor)
    batch = count * max(1, gpus) * micro * draw(st.integers(1, 16))
    length = draw(st.integers(8, 4096))
    shares = [*sorted(draw(st.sets(st.integers(1, 99), max_size=6))), 100]
    teacher_from = draw(st.none() | st.integers(0, len(shares) - 1))
    # 100 steps give every phase at least one.
    steps = draw(st.integers(100, 50_000))
    return spec_of(
        data={"sequenceLength": length},
        budget={
            "tokens": steps * batch * length + draw(st.integers(0, batch * length - 1)),
            "globalBatchSize": batch,
        },
        optimizer={"adamLearningRate": draw(st.floats(1e-6, 1))},
        schedule=draw(schedules()),
        quantization=draw(
            st.just({})
            | st.fixed_dictionaries(
                {
                    "lambdaWarmup": st.fixed_dictionaries(
                        {"steps": st.integers(1, 60_000), "curve": st.sampled_from(["Linear", "Cosine"])}
                    )
                }
            )
        ),
        phases=phases_of(shares, teacher_from),
        workers={"count": count, "gpusPerWorker": gpus, "microBatchSize": micro},
        **({"teacher": {"from": "hf://a/b", "batchSizeFactor": factor}} if teacher_from is not None else {}),
    )


def schedules() -> st.SearchStrategy[dict[str, Any]]:
    """Every kind of schedule, in its own words."""
    common = {"warmupSteps": st.integers(0, 60_000), "finalShare": st.floats(0, 1)}
    curves = st.sampled_from(["Linear", "Cosine", "OneMinusSqrt"])
    stable = {"decayFraction": st.floats(0, 1), "decayCurve": curves}
    return st.fixed_dictionaries(common, optional=stable) | st.fixed_dictionaries(
        common | {"name": st.sampled_from(["Cosine", "Linear"])}
    )


def steps_to_look_at(ledger: Plan) -> list[int]:
    """Every hundredth step or so, and all around the places where something changes."""
    total = ledger.total_steps
    rate, blended = ledger.learning_rate, ledger.quantization_lambda
    corners = {0, total, rate.warmup_steps, rate.decay_start, blended.steps}
    corners |= {phase.end_step for phase in ledger.phases}
    near = {corner + offset for corner in corners for offset in (-1, 0, 1)}
    return sorted(step for step in near | set(range(0, total, max(1, total // 100))) if 0 <= step < total)


@given(specs())
def test_phases_tile_the_run(spec: BitNetRunSpec) -> None:
    ledger = plan(spec)
    assert ledger.phases[0].first_step == 0
    assert ledger.phases[-1].end_step == ledger.total_steps
    assert all(before.end_step == after.first_step for before, after in pairwise(ledger.phases))
    assert all(phase.first_step < phase.end_step for phase in ledger.phases)
    for step in steps_to_look_at(ledger):
        phase = ledger.phase_at(step)
        assert phase.first_step <= step < phase.end_step
    assert ledger.phase_at(ledger.total_steps) is ledger.phases[-1]


@given(specs())
def test_the_global_batch_holds_in_every_phase(spec: BitNetRunSpec) -> None:
    """Trap 8: the micro batch halves for the teacher, and the global batch does not follow."""
    for phase in plan(spec).phases:
        assert phase.shape.global_batch_size == spec.budget.global_batch_size
        factor = spec.teacher.micro_batch_factor if spec.teacher is not None and phase.teacher else 1
        assert phase.shape.micro_batch_size == round(spec.workers.micro_batch_size * factor)


@given(specs(), st.data())
def test_steps_do_not_depend_on_the_number_of_workers(spec: BitNetRunSpec, data: st.DataObject) -> None:
    """Trap 2: steps follow from tokens and the global batch; the world only shares a step's work out."""
    batch = spec.budget.global_batch_size
    count = data.draw(st.sampled_from([number for number in range(1, 65) if batch % number == 0]))
    workers = spec.workers.model_copy(
        update={"count": count, "gpus_per_worker": 1, "micro_batch_size": batch // count}
    )
    teacher = spec.teacher and spec.teacher.model_copy(update={"batch_size_factor": 1.0})
    one, other = plan(spec), plan(spec.model_copy(update={"workers": workers, "teacher": teacher}))
    assert other.phases[0].shape.world_size == count
    assert [(p.first_step, p.end_step) for p in one.phases] == [
        (p.first_step, p.end_step) for p in other.phases
    ]
    assert one.total_steps == other.total_steps
    assert one.tokens == other.tokens
    assert one.ledger_hash == other.ledger_hash


@given(specs())
def test_the_budget_is_cut_down_to_whole_steps(spec: BitNetRunSpec) -> None:
    ledger = plan(spec)
    assert ledger.tokens == ledger.total_steps * ledger.tokens_per_step
    assert 0 <= spec.budget.tokens - ledger.tokens < ledger.tokens_per_step


@given(specs())
def test_the_learning_rate_lasts_exactly_as_long_as_the_run(spec: BitNetRunSpec) -> None:
    """Trap 3: a schedule with a horizon of its own once trained 28,000 of 38,000 steps at rate 0."""
    ledger = plan(spec)
    rate = ledger.learning_rate
    for step in steps_to_look_at(ledger):
        assert 0 < rate.at(step) <= rate.peak
    assert rate.at(ledger.total_steps) == 0
    assert rate.at(ledger.total_steps + 1) == 0


@given(specs())
def test_the_learning_rate_rises_holds_and_falls(spec: BitNetRunSpec) -> None:
    rate = plan(spec).learning_rate
    steps = steps_to_look_at(plan(spec))
    rising = [rate.at(step) for step in steps if step < min(rate.warmup_steps, rate.decay_start)]
    holding = [rate.at(step) for step in steps if rate.warmup_steps <= step < rate.decay_start]
    falling = [rate.at(step) for step in steps if step >= max(rate.warmup_steps, rate.decay_start)]
    assert rising == sorted(rising)
    assert set(holding) <= {rate.peak}
    assert falling == sorted(falling, reverse=True)


@given(specs())
def test_lambda_rises_from_0_to_1(spec: BitNetRunSpec) -> None:
    blended = plan(spec).quantization_lambda
    steps = [*steps_to_look_at(plan(spec)), blended.steps, blended.steps + 1, blended.steps + 100]
    values = [blended.at(step) for step in sorted(steps)]
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)
    assert blended.at(0) == (0 if blended.steps else 1)
    assert blended.at(blended.steps) == 1


@given(specs(), st.integers(0, 60_000))
def test_lambda_goes_on_where_a_resumed_run_goes_on(spec: BitNetRunSpec, step: int) -> None:
    """Trap 4: a resumed process knows the step alone, and finds the same lambda as the one before it."""
    ledger = plan(spec)
    resumed = Plan.model_validate_json(ledger.model_dump_json(by_alias=True))
    assert resumed == ledger
    assert resumed.quantization_lambda.at(step) == ledger.quantization_lambda.at(step)


@given(specs())
def test_the_teacher_starts_with_the_first_phase_that_gives_it_weight(spec: BitNetRunSpec) -> None:
    ledger = plan(spec)
    distilling = [phase.first_step for phase in ledger.phases if phase.weights.get("teacherLogits", 0) > 0]
    assert ledger.teacher_start == (distilling[0] if distilling else None)
    assert [phase.first_step for phase in ledger.phases if phase.teacher] == distilling


@pytest.mark.parametrize("every", [None, 100, 1000])
def test_influence_that_is_never_measured_is_an_error(every: int | None) -> None:
    """Trap 1: a policy that is chosen and changes nothing. After the last of 100 steps is too late."""
    sources = [{"name": name, "uri": f"file:///{name}"} for name in ("web", "code")]
    mixture = {"policy": "Influence"} | ({"everySteps": every} if every else {})
    with pytest.raises(InvalidRun, match=rf"mixture\.everySteps: .* after {every or 100} steps, .* has 100,"):
        plan(spec_of(budget={"tokens": 6400}, data={"sources": sources, "mixture": mixture}))
    assert plan(
        spec_of(budget={"tokens": 6400}, data={"sources": sources, "mixture": mixture | {"everySteps": 99}})
    )


def test_a_phase_mixes_as_the_spec_does_or_by_its_own_weights() -> None:
    sources = [{"name": "web", "uri": "file:///web", "weight": 3}, {"name": "code", "uri": "file:///code"}]
    phases = phases_of([50, 100], None)
    phases[1]["mixture"] = {"code": 2}
    ledger = plan(spec_of(data={"sources": sources}, phases=phases))
    assert [phase.mixture for phase in ledger.phases] == [{"web": 3, "code": 1}, {"web": 0, "code": 2}]


@given(
    st.integers(1, 512),
    st.integers(1, 8),
    st.integers(0, 4),
    st.integers(1, 16),
    st.sampled_from([1, 0.5, 0.25]),
)
def test_a_wrong_division_names_the_numbers_and_a_mend_that_works(
    batch: int, count: int, gpus: int, micro: int, factor: float
) -> None:
    workers = {"count": count, "gpusPerWorker": gpus, "microBatchSize": micro}
    blocks: dict[str, Any] = {
        "phases": phases_of([50, 100], 1),
        "teacher": {"from": "hf://a/b", "batchSizeFactor": factor},
        "workers": workers,
        "budget": {"globalBatchSize": batch, "tokens": "10M"},
    }
    try:
        plan(spec_of(**blocks))
    except InvalidRun as error:
        problems = error.problems
    else:
        return
    for problem in problems:
        if problem.field == "spec.teacher.batchSizeFactor":
            assert f"micro batch {micro} x {float(factor)}" in problem.what
            blocks["teacher"]["batchSizeFactor"] = 1
            continue
        assert problem.field == "spec.budget.globalBatchSize"
        assert f"{batch} sequences" in problem.what
        assert f"{count} workers x {max(1, gpus)} processes x micro batch" in problem.what
        blocks["budget"]["globalBatchSize"] = int(problem.fix.rsplit(" ", 1)[1])
    plan(spec_of(**blocks))


def test_a_micro_batch_that_the_teacher_cannot_halve_is_an_error() -> None:
    blocks = {"phases": phases_of([50, 100], 1), "teacher": {"from": "hf://a/b", "batchSizeFactor": 0.5}}
    with pytest.raises(InvalidRun, match=r"micro batch 1 x 0\.5 is 0\.5, not a whole number"):
        plan(spec_of(**blocks))


def test_a_budget_below_one_step_is_an_error() -> None:
    with pytest.raises(InvalidRun, match=r"spec\.budget\.tokens: 63 tokens .* Write at least 64"):
        plan(spec_of(budget={"tokens": 63}))


def test_a_phase_without_a_step_is_an_error() -> None:
    with pytest.raises(InvalidRun, match=r"spec\.phases\[0\]\.until: phase 'phase-0' has no step"):
        plan(spec_of(budget={"tokens": 640}, phases=phases_of([5, 100], None)))


def test_a_step_before_the_run_is_an_error() -> None:
    with pytest.raises(ValueError, match="steps count from 0"):
        plan(spec_of()).phase_at(-1)


def test_the_full_run(run: BitNetRun) -> None:
    """10G tokens, sequences of 512, micro batch 32, accumulation 16, 2 workers of one GPU."""
    ledger = plan(run.spec)
    assert ledger.global_batch_size == 1024
    assert ledger.total_steps == 19_073
    assert ledger.teacher_start == 17_165
    assert [phase.end_step for phase in ledger.phases] == [1_907, 17_165, 19_073]
    assert [phase.shape.accumulation for phase in ledger.phases] == [16, 16, 32]
    assert [phase.shape.micro_batch_size for phase in ledger.phases] == [32, 32, 16]
    assert ledger.tokens == 9_999_745_024


def test_a_boundary_is_exact_where_a_float_would_miss_it() -> None:
    # 0.57 * 100 is 56.99999999999999 in floats.
    ledger = plan(spec_of(budget={"tokens": 6400}, phases=phases_of([57, 100], None)))
    assert (ledger.total_steps, ledger.phases[0].end_step) == (100, 57)


def test_a_changed_ledger_has_another_hash(full_run: dict[str, Any], changed: Any) -> None:
    first = plan(parse_run(full_run).spec).ledger_hash
    assert plan(parse_run(changed("spec.phases.0.until", "11%")).spec).ledger_hash != first
    assert plan(parse_run(changed("spec.workers.microBatchSize", 64)).spec).ledger_hash == first
