"""What is masked: by seed and sequence alone, never an end or padding, and never in place."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from answering import MASK, few, rows_of, some_rows
from bitnet_trainer.batch import IGNORED, Rows, SequenceId
from bitnet_trainer.objectives.masking import Masking

HALF = Masking(0.5, MASK, "Independent", seed=7)
BOTH = Masking(0.5, MASK, "Complementary", seed=7)
modes = st.sampled_from(["Independent", "Complementary"])


def eligible(rows):
    """Place by place, from the definition."""
    found = torch.zeros_like(rows.tokens)
    for row, tokens in enumerate(rows.tokens.tolist()):
        places = [place for place, token in enumerate(tokens) if token]
        for place in places[1:-1]:
            found[row, place] = rows.labels[row, place] != IGNORED
    return found


@few
@given(some_rows(), modes, st.floats(0.01, 0.99))
def test_what_is_masked_is_a_label_and_what_is_not_is_as_it_was(rows, mode, probability):
    masked = Masking(probability, MASK, mode, 0)(rows)
    times = 2 if mode == "Complementary" else 1
    where = masked.input_ids == MASK
    text = rows.input_ids.repeat(times, 1)
    assert torch.equal(masked.input_ids, torch.where(where, MASK, text))
    assert torch.equal(masked.labels, torch.where(where, text, IGNORED))
    assert not (where & ~eligible(rows).repeat(times, 1)).any()
    assert torch.equal(masked.tokens, rows.tokens.repeat(times, 1))
    assert masked.ids == rows.ids * times


@few
@given(some_rows())
def test_complementary_masks_each_eligible_token_once(rows):
    once, again = (BOTH(rows).input_ids == MASK).chunk(2)
    assert not (once & again).any()
    assert torch.equal(once | again, eligible(rows))
    assert torch.equal(once, HALF(rows).input_ids == MASK)


@few
@given(some_rows(), st.integers(0, 12))
def test_a_row_is_masked_alike_in_any_company_and_padding(rows, padding):
    together = HALF(rows)
    for row in range(len(rows)):
        single = rows[row : row + 1]
        wider = Rows(
            torch.nn.functional.pad(single.input_ids, (0, padding)),
            torch.nn.functional.pad(single.labels, (0, padding), value=IGNORED),
            torch.nn.functional.pad(single.tokens.long(), (0, padding)),
            ids=single.ids,
        )
        width = rows.input_ids.shape[1]
        assert torch.equal(HALF(single).input_ids[0], together.input_ids[row])
        assert torch.equal(HALF(wider).input_ids[0, :width], together.input_ids[row])
    turned = Rows(rows.input_ids.flip(0), rows.labels.flip(0), ids=rows.ids[::-1])
    if rows.attention_mask is None:
        assert torch.equal(HALF(turned).input_ids.flip(0), together.input_ids)


def test_the_state_of_chance_elsewhere_is_neither_used_nor_changed():
    rows = rows_of(40, 40)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = HALF(rows)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(HALF(rows).input_ids, first.input_ids)


def test_the_mask_stays_what_it_is_from_version_to_version():
    """A resumed run, perhaps by later code, masks what it would have masked."""
    where = HALF(Rows.of(torch.zeros(1, 24, dtype=torch.long), [SequenceId(1, 2, 3)])).input_ids[0] == MASK
    assert "".join("x" if masked else "." for masked in where.tolist()) == ".x.xx..xx.x.xx.xx.xx...."


@pytest.mark.parametrize(
    ("other", "seed"),
    [
        (SequenceId(1, 0, 0), 7),
        (SequenceId(0, 1, 0), 7),
        (SequenceId(0, 0, 1), 7),
        (SequenceId(0, 0, 0), 8),
    ],
)
def test_another_sequence_epoch_or_seed_is_masked_otherwise(other, seed):
    text = torch.zeros(1, 64, dtype=torch.long)
    first = HALF(Rows.of(text, [SequenceId(0, 0, 0)]))
    second = Masking(0.5, MASK, "Independent", seed)(Rows.of(text, [other]))
    assert not torch.equal(first.input_ids, second.input_ids)


@pytest.mark.parametrize("probability", [0.15, 0.5, 0.9])
def test_as_many_are_masked_as_the_probability_says(probability):
    rows = rows_of(*[1002] * 20)
    share = (Masking(probability, MASK, "Independent", 0)(rows).input_ids == MASK).sum() / 20_000
    assert share == pytest.approx(probability, abs=4 * (probability * (1 - probability) / 20_000) ** 0.5)


@few
@given(some_rows(), modes)
def test_the_rows_given_are_left_as_they_are(rows, mode):
    before = copy.deepcopy(rows)
    Masking(0.9, MASK, mode, 0)(rows)
    assert torch.equal(rows.input_ids, before.input_ids)
    assert torch.equal(rows.labels, before.labels)


def test_rows_that_do_not_say_which_they_are_are_refused():
    with pytest.raises(ValueError, match=r"2 rows with 1 ids cannot be masked.*an id for each row"):
        HALF(Rows.of(torch.zeros(2, 4, dtype=torch.long), [SequenceId(0, 0, 0)]))
