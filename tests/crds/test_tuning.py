"""A tuned teacher in the contract: its own line of the ledger, and the run of its own that tunes it."""

from typing import Any

import pytest

from bitnet_crds import Adjustments, BitNetRunSpec, InvalidRun, Order, Plan, plan
from bitnet_crds.carried_out import carried_out
from bitnet_crds.locations import parse_location
from bitnet_crds.protocol import tuned_teacher_address
from bitnet_crds.spec import Teacher
from bitnet_crds.tuning import TUNING
from bitnet_crds.tuning_plan import TuningPlan
from small_specs import phases_of, spec_of

STEP = 64
"""Tokens in a step of `spec_of`."""


def tuned(tune: dict[str, Any] | None, **changes: Any) -> BitNetRunSpec:
    teacher = {"from": "hf://big/teacher", "revision": "main"} | ({"tune": tune} if tune else {})
    changes = {"teacher": teacher, "phases": phases_of([50, 100], 1), **changes}
    return spec_of(workers={"microBatchSize": 4}, **changes)


def tuning_of(spec: BitNetRunSpec) -> TuningPlan:
    tuning = plan(spec).tuning
    assert tuning is not None
    return tuning


def order_of(spec: BitNetRunSpec, **changes: Any) -> Order:
    return Order(namespace="ml", name="a", job="a-0", spec=spec, plan=plan(spec), **changes)


def test_the_tuning_has_a_line_of_its_own() -> None:
    spec = tuned({"tokens": 100 * STEP + 63, "learningRate": 2e-4, "warmupFraction": 0.1})
    ledger, tuning = plan(spec), tuning_of(spec)
    assert (tuning.steps, tuning.tokens) == (100, 100 * STEP)
    assert tuning.mixture == {"text": 1.0}
    assert tuning.shape == ledger.phases[0].shape
    assert [tuning.learning_rate.at(step) for step in (0, 9, 55, 100)] == pytest.approx([2e-5, 2e-4, 1e-4, 0])
    plain = plan(tuned(None))
    assert (ledger.tokens, ledger.total_steps, ledger.phases) == (
        plain.tokens,
        plain.total_steps,
        plain.phases,
    )


def test_the_default_is_a_rate_for_fine_tuning() -> None:
    tuning = tuning_of(tuned({"tokens": 100 * STEP}))
    assert (tuning.learning_rate.peak, tuning.learning_rate.warmup_steps) == (1e-4, 5)


def test_a_tuning_without_a_step_is_refused() -> None:
    with pytest.raises(InvalidRun, match=r"spec.teacher.tune.tokens: 63 tokens are less .* at least 64"):
        plan(tuned({"tokens": 63}))


def test_another_tuning_is_another_run_and_another_shape_the_same() -> None:
    one = tuned({"tokens": 100 * STEP})
    others = [tuned(None), *(tuned({"tokens": 100 * STEP, **more}) for more in OTHERS)]
    hashes = {order_of(spec).training_hash for spec in (one, *others)}
    assert len(hashes) == 1 + len(others)
    halved = plan(one, Adjustments(halvings={TUNING: 1}))
    assert halved.tuning is not None
    assert (halved.tuning.shape.micro_batch_size, halved.tuning.shape.accumulation) == (2, 4)
    assert halved.phases == plan(one).phases
    assert halved.ledger_hash == plan(one).ledger_hash


OTHERS = ({"tokens": 101 * STEP}, {"learningRate": 2e-4}, {"warmupFraction": 0.5})


def test_a_run_without_one_has_the_hash_that_it_always_had() -> None:
    ledger = plan(tuned(None))
    assert '"tuning"' not in ledger.model_dump_json(exclude_none=True)
    assert Plan.model_validate_json(ledger.model_dump_json(exclude_none=True)) == ledger
    assert ledger.ledger_hash == "709a5ddc549df1da"


def test_a_tuning_is_carried_out_as_a_run_of_the_teacher_alone() -> None:
    spec = tuned(
        {"tokens": 100 * STEP, "learningRate": 3e-4},
        data={"mixture": {"policy": "Bandit"}, "sources": SOURCES, "documents": "Separate"},
        health={"plateau": {"windowTokens": 640}},
        quantization={"lambdaWarmup": {"steps": 10}},
        optimizer={"name": "MuonClip", "weightDecay": 0.1},
        averaging={"decay": 0.9},
        checkpoint={"inferenceWeights": True, "everySteps": 7},
        seed=3,
    )
    order = order_of(spec, purpose="TuneTeacher", scratch="/scratch")
    run = carried_out(order)
    assert (run.spec.model.from_, run.spec.model.revision, run.spec.teacher) == (
        "hf://big/teacher",
        "main",
        None,
    )
    assert run.plan.weights_at(0) == {"crossEntropy": 1.0}
    assert run.plan.phases[0].mixture == {"web": 3.0, "code": 1.0}
    assert (run.plan.total_steps, run.plan.end_step, run.plan.tokens) == (100, 100, 100 * STEP)
    assert run.plan.learning_rate == order.plan.tuning.learning_rate
    assert (run.spec.optimizer.name, run.spec.optimizer.adam_learning_rate) == ("AdamW", 3e-4)
    assert (run.spec.seed, run.spec.data.documents, run.spec.checkpoint.every_steps) == (3, "Separate", 7)
    assert run.spec.export.formats == ()
    assert run.shape == order.shape == plan(spec).phases[0].shape
    assert run.address == f"{order.address}/teacher-tuning"
    assert run.folder == order.folder / "teacher-tuning"
    assert Order.model_validate_json(run.model_dump_json(by_alias=True)) == run
    # Its own budget and phases make the very same ledger, and no other.
    again = plan(run.spec).model_copy(update={"learning_rate": run.plan.learning_rate, "ledger_hash": ""})
    assert again == run.plan.model_copy(update={"ledger_hash": ""})


SOURCES = [
    {"name": "web", "uri": "file:///web", "weight": 3},
    {"name": "code", "uri": "file:///code"},
]


def test_an_order_that_trains_is_carried_out_as_it_is() -> None:
    order = order_of(tuned({"tokens": 100 * STEP}))
    assert order.purpose == "Train"
    assert carried_out(order) is order


def test_what_a_tuning_trains_is_named_by_the_tuning_alone() -> None:
    def hash_of(tune: dict[str, Any], **changes: Any) -> str:
        return carried_out(order_of(tuned(tune, **changes), purpose="TuneTeacher")).training_hash

    one = hash_of({"tokens": 100 * STEP})
    student = {"quantization": {"subLN": "AllProjections"}, "phases": phases_of([100], 0)}
    assert hash_of({"tokens": 100 * STEP}, **student) == one
    assert len({one, *(hash_of({"tokens": 100 * STEP, **more}) for more in OTHERS)}) == 1 + len(OTHERS)


def test_the_pods_of_a_tuning_are_those_of_the_first_phase() -> None:
    phases = phases_of([50, 100], 1)
    phases[0]["workers"] = {"count": 2, "microBatchSize": 2, "template": {"spec": {}}}
    spec = tuned({"tokens": 100 * STEP}, phases=phases, teacher=RESCALED)
    run = carried_out(order_of(spec, purpose="TuneTeacher"))
    assert run.spec.phases[0].workers == spec.phases[0].workers
    assert (run.shape.workers, run.shape.micro_batch_size, run.shape.accumulation) == (2, 2, 2)


RESCALED = {"from": "hf://big/teacher", "tune": {"tokens": 100 * STEP}, "resize": "Rescale"}


def test_an_order_to_tune_needs_a_tuning() -> None:
    with pytest.raises(ValueError, match="its ledger has no tuning"):
        order_of(tuned(None), purpose="TuneTeacher")


@pytest.mark.parametrize("uri", ["file:///runs", "pvc://claim/runs", "gs://bucket/runs"])
def test_the_tuned_teacher_has_an_address_that_a_model_can_have(uri: str) -> None:
    order = order_of(tuned({"tokens": 100 * STEP}, checkpoint={"uri": uri}))
    address = tuned_teacher_address(order)
    assert address == f"{uri}/ml/a/teacher"
    assert Teacher(from_=address).from_ == address
    assert parse_location(address).scheme == uri.partition(":")[0]
