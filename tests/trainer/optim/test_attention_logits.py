"""The largest attention logits: those that attention is really computed of, and of nothing unseen."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_trainer.errors import BadInput
from bitnet_trainer.models import attention_logits
from bitnet_trainer.models.attention_logits import LargestLogits, largest_logits
from families import ARCHITECTURES, VOCABULARY, small_model

RECORDED = [name for name in ARCHITECTURES if not name.startswith("Gemma2")]


def by_brute_force(queries, keys, mask, scale, real=None):
    """Every logit of every head, one at a time, in float64."""
    batch, heads, length, channels = queries.shape
    keys = keys.repeat_interleave(heads // keys.shape[1], dim=1)
    largest = [-math.inf] * heads
    for row, head, query, key in (
        (b, h, q, k) for b in range(batch) for h in range(heads) for q in range(length) for k in range(length)
    ):
        seen = key <= query if mask is None else mask[row % len(mask), 0, query, key]
        if seen and (real is None or real[row, query]):
            product = queries[row, head, query].double() @ keys[row, head, key].double()
            largest[head] = max(largest[head], product.item() * (scale or channels**-0.5))
    return torch.tensor(largest)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2)]),
    st.sampled_from(["causal", "mask", "padding"]),
    st.sampled_from([None, 0.3]),
    st.sampled_from([1, 40, 2**24]),
)
def test_by_brute_force(seed, heads, kind, scale, most):
    torch.manual_seed(seed)
    queries, keys = torch.randn(2, heads[0], 5, 4), torch.randn(2, heads[1], 5, 4)
    mask = None if kind == "causal" else (torch.rand(2, 1, 5, 5) < 0.6).tril()
    real = torch.rand(2, 5) < 0.7 if kind == "padding" else None
    before, attention_logits._MOST_LOGITS = attention_logits._MOST_LOGITS, most
    try:
        found = largest_logits(queries, keys, mask, scale, real)
    finally:
        attention_logits._MOST_LOGITS = before
    torch.testing.assert_close(found, by_brute_force(queries, keys, mask, scale, real))


def test_not_all_logits_are_held_at_once(monkeypatch):
    """No tensor of (B, H, S, S) is made."""
    sizes = []
    monkeypatch.setattr(attention_logits, "_MOST_LOGITS", 2 * 4 * 16 * 64)
    amax = torch.Tensor.amax
    monkeypatch.setattr(
        torch.Tensor, "amax", lambda x, **options: sizes.append(x.numel()) or amax(x, **options)
    )
    largest_logits(torch.randn(2, 4, 64, 8), torch.randn(2, 2, 64, 8))
    assert sizes == [2 * 4 * 16 * 64] * 4


def attended(model, monkeypatch, **inputs):
    """What the model puts out, and the queries, keys and scale that its attention was computed of."""
    calls = []
    sdpa = F.scaled_dot_product_attention

    def spy(query, key, value, **options):
        calls.append((query.detach(), key.detach(), options.get("scale")))
        return sdpa(query, key, value, **options)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", spy)
        return model.base_model(**inputs).last_hidden_state, calls


@pytest.mark.parametrize("architecture", RECORDED)
def test_they_are_those_that_attention_is_computed_of(architecture, monkeypatch):
    """After RoPE and QK-norm, at the model's own scale; and the model computes what it did."""
    model = small_model(architecture).train()
    tokens = torch.randint(VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))
    before = model.base_model(input_ids=tokens).last_hidden_state
    logits = LargestLogits(model)
    after, calls = attended(model, monkeypatch, input_ids=tokens)
    assert torch.equal(before, after)
    assert len(calls) == 2
    for found, (queries, keys, scale) in zip(logits.values, calls, strict=True):
        torch.testing.assert_close(found, by_brute_force(queries, keys, None, scale))


@pytest.mark.parametrize("architecture", ["LlamaForSequenceClassification", "BitNetLlama"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_is_not_counted(architecture, padding, monkeypatch):
    """Whatever stands there: it looks at nothing, and nothing looks at it."""
    model = small_model(architecture).train()
    with torch.no_grad():
        model.get_input_embeddings().weight[60] *= 1000
    logits = LargestLogits(model)
    tokens = torch.randint(2, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    real = torch.ones(2, 7, dtype=torch.bool)
    real[1, :3] = False
    if padding == "right":
        real = real.flip(1)
    tokens = tokens.where(real, 60)
    _, calls = attended(model, monkeypatch, input_ids=tokens, attention_mask=real.long())
    mask = real[:, None, None, :] & torch.ones(7, 7, dtype=torch.bool).tril()
    for found, (queries, keys, scale) in zip(logits.values, calls, strict=True):
        torch.testing.assert_close(found, by_brute_force(queries, keys, mask, scale, real))
    model.base_model(input_ids=tokens[:1])
    assert logits._real is None


def test_they_are_the_largest_of_all_passes_in_training_until_forgotten():
    model = small_model().train()
    logits = LargestLogits(model)
    assert (logits.values == -math.inf).all()
    passes = torch.randint(VOCABULARY, (3, 2, 7), generator=torch.Generator().manual_seed(0))
    each = []
    for tokens in passes:
        logits.forget()
        model(tokens)
        each.append(logits.values.clone())
    logits.forget()
    for tokens in passes:
        model(tokens)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2
    model(passes[0])
    assert torch.equal(logits.values, torch.stack(each).amax(dim=0))


def test_attention_that_is_more_than_products_is_refused():
    with pytest.raises(BadInput, match=r"those of Gemma2ForCausalLM cannot be had.*Write `name: AdamW`"):
        LargestLogits(small_model("Gemma2ForCausalLM"))


def test_a_saved_model_does_not_know(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path / "before")
    LargestLogits(model)
    model.save_pretrained(tmp_path / "after")
    before, after = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("before", "after")
    )
    assert before == after
