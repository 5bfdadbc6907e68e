"""Out of memory: half the micro batch of the phase that did not fit, at most three times."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds import Plan, parse_run, plan
from bitnet_crds.adjustments import Adjustments
from bitnet_crds.tuning import TUNING
from bitnet_operator.policies.adjust import Adjusted, Exhausted
from bitnet_operator.policies.out_of_memory import LARGEST_HALVINGS, after_out_of_memory
from small_run import small_document

TUNED = {"teacher": {"from": "file:///models/teacher", "tune": {"tokens": 16 * 8 * 5}}}


@pytest.mark.parametrize(
    ("halvings", "step", "tuning", "name", "micro", "accumulation"),
    [
        pytest.param({}, 0, False, "warmup", 2, 2, id="the first step"),
        pytest.param({}, 2, False, "main", 2, 2, id="the first step of the next phase"),
        pytest.param({}, 5, False, "main", 2, 2, id="the last before the teacher"),
        pytest.param({}, 6, False, "distill", 1, 4, id="with the teacher"),
        pytest.param({}, 10, False, "distill", 1, 4, id="while it is evaluated"),
        pytest.param({"main": 1}, 3, False, "main", 1, 4, id="once more"),
        pytest.param({"main": 1}, 6, False, "distill", 1, 4, id="each phase by itself"),
        pytest.param({}, 6, True, TUNING, 2, 2, id="the teacher's tuning, whatever its step"),
        pytest.param({TUNING: 1}, 0, True, TUNING, 1, 4, id="and again"),
    ],
)
def test_the_phase_that_did_not_fit_is_halved(
    ledger: Callable[..., Plan],
    halvings: dict[str, int],
    step: int,
    tuning: bool,
    name: str,
    micro: int,
    accumulation: int,
) -> None:
    known = Adjustments(halvings=halvings)
    verdict = after_out_of_memory(ledger(known, **TUNED), known, step, tuning=tuning, message="No memory.")
    assert isinstance(verdict, Adjusted)
    assert verdict.adjustments.halvings == halvings | {name: halvings.get(name, 0) + 1}
    assert verdict.checkpoint_step is None, "it goes on from the newest checkpoint"
    assert verdict.message == (
        f"No memory. The micro batch of {name!r} is halved: {micro} sequences, {accumulation} times a step"
    )
    after = ledger(verdict.adjustments, **TUNED)
    shape = after.tuning.shape if tuning and after.tuning else after.phase_at(step).shape
    assert (shape.micro_batch_size, shape.accumulation) == (micro, accumulation)


@pytest.mark.parametrize(
    ("batch", "micro", "halvings", "why"),
    [
        pytest.param(8, 1, 0, "the micro batch of 'main' is 1 already", id="nothing to halve"),
        pytest.param(8, 4, 2, "the micro batch of 'main' is 1 already", id="halved down to 1"),
        pytest.param(
            32, 16, 3, "the micro batch of 'main' was halved 3 times, to 2", id="an eighth is the least"
        ),
    ],
)
def test_it_fails_where_halving_cannot_help(
    ledger: Callable[..., Plan], batch: int, micro: int, halvings: int, why: str
) -> None:
    known = Adjustments(halvings={"main": halvings})
    planned = ledger(
        known,
        budget={"tokens": 16 * batch * 10, "globalBatchSize": batch},
        workers={"count": 2, "gpusPerWorker": 0, "microBatchSize": micro},
        teacher={"from": "file:///models/teacher", "batchSizeFactor": 1},
    )
    verdict = after_out_of_memory(planned, known, 3, tuning=False, message="No memory.")
    assert verdict == Exhausted(f"No memory. ({why})")


@given(
    micro=st.integers(1, 48).map(lambda half: 2 * half),
    passes=st.integers(1, 6),
    steps=st.lists(st.integers(0, 10), max_size=40),
)
def test_whatever_runs_out_the_global_batch_holds_and_it_ends(
    micro: int, passes: int, steps: list[int]
) -> None:
    batch = 2 * micro * passes
    spec = parse_run(
        small_document(
            budget={"tokens": 16 * batch * 10, "globalBatchSize": batch},
            workers={"count": 2, "gpusPerWorker": 0, "microBatchSize": micro},
        )
    ).spec
    known = Adjustments()
    for step in steps:
        before = plan(spec, known)
        verdict = after_out_of_memory(before, known, step, tuning=False, message="")
        if isinstance(verdict, Exhausted):
            shape = before.phase_at(step).shape
            halved = known.halvings.get(before.phase_at(step).name, 0)
            assert shape.micro_batch_size == 1 or halved == LARGEST_HALVINGS
            continue
        known = verdict.adjustments
        after = plan(spec, known)
        assert after.ledger_hash == before.ledger_hash, "its checkpoints go on"
        assert all(phase.shape.global_batch_size == batch for phase in after.phases)
        assert (
            after.phase_at(step).shape.micro_batch_size <= before.phase_at(step).shape.micro_batch_size // 2
        )
        assert all(times <= LARGEST_HALVINGS for times in known.halvings.values())
