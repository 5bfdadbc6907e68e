"""What a run can ask of its sources, against what the cursor takes step by step."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds import plan
from bitnet_crds.demand import sequences_at_most
from bitnet_trainer.data import Cursor
from bitnet_trainer.data.packing import pack, sequences_for
from small_specs import phases_of, spec_of

NAMES = ("a", "b", "c")
WEIGHTS = st.lists(st.sampled_from([0, 0.01, 1, 7]), min_size=3, max_size=3).filter(any)


def spec_with(steps, weights, until, second, policy=None):
    phases = phases_of(until, None)
    if second is not None:
        phases[-1]["mixture"] = {name: weight for name, weight in zip(NAMES, second, strict=True) if weight}
    sources = [{"name": name, "uri": f"hf://a/{name}", "weight": weight or 1} for name, weight in
               zip(NAMES, weights, strict=True)]  # fmt: skip
    mixture = {"mixture": {"policy": policy, "everySteps": 2}} if policy else {}
    return spec_of(
        data={"sequenceLength": 8, "sources": sources, **mixture},
        budget={"tokens": steps * 8 * 8, "globalBatchSize": 8},
        phases=phases,
    )


@given(steps=st.integers(10, 60), weights=WEIGHTS, second=st.none() | WEIGHTS, cut=st.integers(10, 90))
def test_no_source_is_asked_for_more_and_little_more_is_fetched(steps, weights, second, cut):
    spec = spec_with(steps, weights, [cut, 100], second)
    ledger = plan(spec)
    most = sequences_at_most(spec, ledger)
    cursor, asked = Cursor.at_start(3), Counter[str]()
    for phase in ledger.phases:
        cursor = cursor.rebased()
        for _ in range(phase.first_step, phase.end_step):
            taken, cursor = cursor.take(8, [phase.mixture[name] for name in NAMES], [10**6] * 3, 0)
            asked.update(NAMES[id_.source] for id_ in taken)
    for name in NAMES:
        assert asked[name] <= most[name] <= asked[name] + 2 * (2 * len(NAMES) + 1)


@pytest.mark.parametrize("policy", ["Bandit", "Influence"])
def test_measured_shares_may_come_to_all_of_the_budget(policy):
    spec = spec_with(10, (1, 1, 1), [100], None, policy)
    assert sequences_at_most(spec, plan(spec)) == dict.fromkeys(NAMES, 80)


@given(trained=st.integers(0, 500), held_out=st.fractions(Fraction(1, 1000), Fraction(1, 2)))
def test_the_text_held_out_is_read_besides_and_no_more(trained, held_out):
    sequences = sequences_for(trained, held_out)
    tokens = np.zeros(sequences * 2, dtype=np.uint32)
    assert pack("a", tokens, 2, held_out).training_sequences >= trained
    if trained > 1 and sequences > 2:
        assert pack("a", tokens[2:], 2, held_out).training_sequences < trained
