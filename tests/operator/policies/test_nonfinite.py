"""Non-finite losses: back to before the fault, its batches never met again, at most so often."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds import Plan, TerminationReport, parse_run, plan
from bitnet_crds.adjustments import Adjustments, Rollback
from bitnet_crds.health import NonFinite
from bitnet_crds.protocol import Fault
from bitnet_operator.policies.adjust import Adjusted, Exhausted
from bitnet_operator.policies.nonfinite import after_non_finite
from small_run import small_document


def report(first_step: int | None, steps: int = 1, checkpoints: tuple[int, ...] = ()) -> TerminationReport:
    fault = None if first_step is None else Fault(first_step=first_step, steps=steps)
    return TerminationReport(exit_code=7, reason="NonFinite", checkpoints=checkpoints, fault=fault)


@pytest.mark.parametrize(
    ("before", "first_step", "steps", "checkpoints", "rollback"),
    [
        pytest.param((), 5, 2, (6, 4, 2), (4, 5, 2), id="not the newest: it was written amid the fault"),
        pytest.param((), 5, 1, (5, 4), (5, 5, 1), id="written just before the fault"),
        pytest.param((), 5, 1, (2, 4), (4, 5, 1), id="in whatever order they are named"),
        pytest.param((), 5, 1, (), (0, 5, 1), id="none: it begins again"),
        pytest.param((), 1, 1, (2,), (0, 1, 1), id="none from before"),
        pytest.param((), 0, 3, (), (0, 0, 3), id="the very first steps"),
        pytest.param(((4, 5, 2),), 5, 1, (4,), (4, 7, 1), id="a second fault is named by its batches"),
        pytest.param(((4, 5, 2),), 4, 2, (4,), (4, 4, 4), id="and reaches over the first"),
    ],
)
def test_it_goes_back_to_before_the_fault_and_passes_its_batches_over(
    ledger: Callable[..., Plan],
    before: tuple[tuple[int, int, int], ...],
    first_step: int,
    steps: int,
    checkpoints: tuple[int, ...],
    rollback: tuple[int, int, int],
) -> None:
    known = Adjustments(rollbacks=tuple(map(rolled_back, before)))
    verdict = after_non_finite(
        ledger(known), known, NonFinite(), report(first_step, steps, checkpoints), "NaN."
    )
    assert isinstance(verdict, Adjusted)
    assert verdict.adjustments.rollbacks == (*known.rollbacks, rolled_back(rollback))
    assert verdict.checkpoint_step == rollback[0]
    assert f"Back to step {rollback[0]}" in verdict.message


def rolled_back(rollback: tuple[int, int, int]) -> Rollback:
    checkpoint_step, first_batch, batches = rollback
    return Rollback(
        checkpoint_step=checkpoint_step, first_batch=first_batch, batches=batches, learning_rate_factor=0.5
    )


@pytest.mark.parametrize(
    ("rollbacks", "limit", "said", "why"),
    [
        pytest.param(0, 0, report(5), "after 0 roll-backs of at most 0", id="none asked for"),
        pytest.param(3, 3, report(5), "after 3 roll-backs of at most 3", id="the last"),
        pytest.param(3, 1, report(5), "after 3 roll-backs of at most 1", id="a limit that was lowered since"),
        pytest.param(0, 3, None, "it was not said which steps", id="no report"),
        pytest.param(0, 3, report(None), "it was not said which steps", id="a report of no steps"),
    ],
)
def test_it_fails_where_going_back_cannot_help(
    ledger: Callable[..., Plan], rollbacks: int, limit: int, said: TerminationReport | None, why: str
) -> None:
    known = Adjustments(rollbacks=tuple(rolled_back((0, batch, 1)) for batch in range(rollbacks)))
    verdict = after_non_finite(ledger(known), known, NonFinite(rollbacks=limit), said, "NaN.")
    assert isinstance(verdict, Exhausted)
    assert why in verdict.message


FAULTS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 4), st.sets(st.integers(1, 10))), min_size=1, max_size=8
)


@given(faults=FAULTS)
def test_what_was_not_finite_is_never_met_again_whatever_went_before(
    faults: list[tuple[int, int, set[int]]],
) -> None:
    spec, known = parse_run(small_document()).spec, Adjustments()
    passed_over, health = set[int](), NonFinite(rollbacks=100)
    for first_step, steps, checkpoints in faults:
        before = plan(spec, known)
        met = {before.batch_at(step) for step in range(first_step, first_step + steps)}
        said = report(first_step, steps, tuple(checkpoints))
        verdict = after_non_finite(before, known, health, said, "")
        assert isinstance(verdict, Adjusted)
        assert verdict.checkpoint_step is not None
        known, passed_over = verdict.adjustments, passed_over | met
        after = plan(spec, known)
        trained = [after.batch_at(step) for step in range(30)]
        assert not passed_over & set(trained)
        assert trained == sorted(set(trained)), "no batch is trained on twice"
        assert set(range(trained[-1])) - set(trained) == {each for each in passed_over if each < trained[-1]}
        kept = range(verdict.checkpoint_step)
        assert [after.batch_at(step) for step in kept] == [before.batch_at(step) for step in kept]
