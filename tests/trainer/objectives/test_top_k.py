"""A model's likeliest tokens: those of its whole logits, which are never held."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bitnet_trainer.objectives.top_k import largest, top_k_of


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("k", [1, 3, 9, 20])
def test_they_are_the_top_of_the_whole_logits(k, chunk):
    torch.manual_seed(0)
    hidden, head = torch.randn(2, 5, 4, dtype=torch.float64), nn.Linear(4, 9).double()
    logits = head(hidden).detach()
    top = top_k_of(hidden, head, k, 3.0, chunk)
    assert top.tokens.shape == (2, 5, min(k, 9))
    torch.testing.assert_close(top.logits, logits.sort(descending=True).values[..., :k])
    torch.testing.assert_close(logits.gather(-1, top.tokens), top.logits)
    torch.testing.assert_close(top.log_normaliser, (logits / 3).exp().sum(-1).log())


def test_they_have_no_gradient_even_of_a_model_that_is_trained():
    hidden, head = torch.randn(2, 5, 4, requires_grad=True), nn.Linear(4, 9)
    assert not any(part.requires_grad for part in top_k_of(hidden, head, 3, 1.0))


def test_logits_stay_as_short_as_they_are_and_are_summed_in_float32():
    torch.manual_seed(0)
    hidden = torch.randn(3, 600).bfloat16()
    top = top_k_of(hidden, lambda hidden: hidden, 3, 2.0)
    assert (top.logits.dtype, top.log_normaliser.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(top.log_normaliser, (hidden.float() / 2).logsumexp(-1))


@given(width=st.integers(1, 700), k=st.integers(1, 12), many=st.integers(1, 300), seed=st.integers(0, 99))
def test_the_largest_of_a_row_are_found_by_group(width, k, many, seed):
    """Few different numbers make many equal ones."""
    k = min(k, width)
    drawn = torch.randint(-many, many + 1, (3, width), generator=torch.Generator().manual_seed(seed))
    rows = drawn.float()
    values, places = largest(rows, k)
    assert torch.equal(values, rows.sort(descending=True).values[:, :k])
    assert torch.equal(rows.gather(-1, places), values)
    assert all(len(set(row)) == k for row in places.tolist())


@pytest.mark.parametrize("place", [0, 299, 300])
def test_what_is_no_number_is_the_largest(place):
    """As in `topk`: what a broken teacher says is not passed over."""
    rows = torch.arange(301.0).repeat(2, 1)
    rows[1, place] = torch.nan
    values, places = largest(rows, 2)
    assert values[0].tolist() == [300, 299]
    assert values[1, 0].isnan()
    assert places[1, 0] == place
