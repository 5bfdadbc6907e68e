"""Largest logits by a kernel: heads above a threshold exactly, of the others that they are not."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_trainer.answer import Capture
from bitnet_trainer.batch import Rows
from bitnet_trainer.documents import cumulative_lengths, dense_mask, first_keys
from bitnet_trainer.models.attention_logits import LargestLogits, largest_logits, tile_maxima
from bitnet_trainer.models.kernels import largest_logits as kernels
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.optim.qk_clip import clip_factors
from families import small_model

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are interpreted only where there is no GPU"
)
EOS = 1


def documents_of(length, seed):
    tokens = torch.randint(1, 6, (2, length), generator=torch.Generator().manual_seed(seed))
    return cumulative_lengths(Rows.of_documents(tokens, EOS).position_ids)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    length=st.sampled_from([5, 16, 37]),
    channels=st.sampled_from([4, 16, 24]),
    packed=st.booleans(),
    threshold=st.sampled_from([-math.inf, 0.5, 2.0, 1e6]),
)
def test_what_is_above_the_threshold_is_exact_and_the_rest_is_below(
    seed, heads, length, channels, packed, threshold
):
    generator = torch.Generator().manual_seed(seed)
    # Laid out as a layer's projections have them.
    query, key = (
        torch.randn(2, length, each, channels, generator=generator).transpose(1, 2) for each in heads
    )
    cu_seqlens = documents_of(length, seed) if packed else None
    mask = dense_mask(cu_seqlens, 2, length) if packed else torch.ones(2, 1, length, length).bool().tril()
    logits = query @ key.repeat_interleave(heads[0] // heads[1], dim=1).mT * 0.3
    logits = logits.masked_fill(~mask, -torch.inf)
    lse, exact = logits.logsumexp(dim=-1), logits.amax(dim=(0, 2, 3))
    begins = first_keys(cu_seqlens, 2, length) if packed else None

    torch.testing.assert_close(tile_maxima(query, key, begins, None, 0.3, 0.0).amax(dim=(0, 2)), exact)
    found = tile_maxima(query, key, begins, lse, 0.3, threshold)
    assert found.shape == (2, heads[0], kernels.tiles_of(length))
    found = found.amax(dim=(0, 2))
    above = exact > threshold
    torch.testing.assert_close(found[above], exact[above])
    assert (found[~above] <= threshold).all()
    assert (found >= exact - 1e-5).all()
    assert (found <= exact + math.log(length) + 1e-5).all()
    if threshold > 0:
        torch.testing.assert_close(clip_factors(found, threshold), clip_factors(exact, threshold))


def test_a_tile_is_looked_into_only_where_it_may_have_a_logit_above():
    """Else its log-sum-exp is put out: here a made-up one, which no logits have."""
    query, key = torch.randn(1, 2, 40, 8), torch.randn(1, 2, 40, 8)
    lse = torch.full((1, 2, 40), 1.5)
    lse[0, 1, 20] = 7.0
    tiles = kernels.Tiles(queries=16, keys=16)
    found = kernels.tile_maxima(query, key, None, lse, 1.0, 2.0, tiles)
    assert found[0, 0].tolist() == [1.5] * 3
    assert found[0, 1, [0, 2]].tolist() == [1.5] * 2
    inner = (query @ key.mT).masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf)[0, 1, 16:32]
    torch.testing.assert_close(found[0, 1, 1], inner.max())


@pytest.mark.parametrize("architecture", ["Qwen3ForCausalLM", "BitNetLlama"])
def test_a_model_tells_the_same_by_kernel(architecture):
    tokens = torch.randint(1, 6, (2, 16), generator=torch.Generator().manual_seed(0))
    rows = Rows.of_documents(tokens, EOS)
    model = small_model(architecture).train()
    largest, view, found = LargestLogits(model), LanguageModel(model), []
    assert not largest.kernel
    for largest.kernel in (False, True):
        largest.forget()
        view(rows.input_ids, None, Capture(), rows.position_ids, cumulative_lengths(rows.position_ids))
        found.append(largest.values.clone())
    torch.testing.assert_close(found[0], found[1])
    assert found[0].isfinite().all()


def test_a_compiler_sees_one_operation_of_the_right_shape():
    query, key = torch.randn(2, 4, 40, 8), torch.randn(2, 2, 40, 8)
    begins, lse = torch.zeros(2, 40, dtype=torch.int32), torch.zeros(2, 4, 40)
    torch.library.opcheck(
        tile_maxima, (query, key, begins, lse, 0.5, 0.0), test_utils=("test_schema", "test_faketensor")
    )


def test_by_torch_it_is_the_same_largest():
    """The twin, which is used where there is no kernel."""
    query, key = torch.randn(2, 4, 20, 8), torch.randn(2, 2, 20, 8)
    found = tile_maxima(query, key, None, None, 8**-0.5, 0.0).amax(dim=(0, 2))
    torch.testing.assert_close(found, largest_logits(query, key))
