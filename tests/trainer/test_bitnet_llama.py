"""BitNetLlama: transformers' BitNet computes the same; positions, packing and padding are honoured."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitNetForCausalLM

from bitnet_trainer.errors import BadInput
from bitnet_trainer.models.bitnet_llama import (
    BitNetLlama,
    BitNetLlamaConfig,
    BitNetLlamaMLP,
    RMSNorm,
    as_huggingface_bitnet,
)
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.rope import angles, rotate
from bitnet_trainer.quantization.warmup import set_lambda

HEADS = 4
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    # Away from zero, so that what is wrong shows in the logits.
    "initializer_range": 0.2,
}
ROWS = HEADS
"""As many rows as heads: rows that are taken for heads, or heads for rows, go unnoticed by shapes alone."""


def build(**changes: Any) -> BitNetLlama:
    torch.manual_seed(0)
    model = BitNetLlama(BitNetLlamaConfig(**{**SIZES, **changes}))
    for norm in (module for module in model.modules() if isinstance(module, RMSNorm)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model.eval()


def stock(model: BitNetLlama) -> BitNetForCausalLM:
    theirs = as_huggingface_bitnet(model)
    twin = BitNetForCausalLM(theirs.config).eval()
    twin.load_state_dict(theirs.state_dict)
    return twin


def tokens(rows: int = ROWS, length: int = 9) -> Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(5))


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hidden_act", ["relu2", "silu"])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_stock_bitnet_gives_the_same_logits(hidden_act: str, key_heads: int, tied: bool) -> None:
    model = build(hidden_act=hidden_act, num_key_value_heads=key_heads, tie_word_embeddings=tied)
    assert_close(model(tokens()).logits, stock(model)(tokens()).logits)


@settings(max_examples=30)
@given(
    key_heads=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([2, 6, 8]),
    rows=st.integers(1, 4),
    length=st.integers(1, 12),
    padding=st.sampled_from(["none", "left", "right"]),
    shift=st.none() | st.integers(0, 50),
    seed=st.integers(0, 1000),
)
def test_stock_bitnet_gives_the_same_logits_of_any_sizes_padding_and_positions(
    key_heads: int,
    groups: int,
    head_dim: int,
    rows: int,
    length: int,
    padding: str,
    shift: int | None,
    seed: int,
) -> None:
    heads = key_heads * groups
    model = build(hidden_size=heads * head_dim, num_attention_heads=heads, num_key_value_heads=key_heads)
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    places = torch.arange(length)
    real = {
        "none": torch.ones(rows, length, dtype=torch.bool),
        "left": places >= length - lengths,
        "right": places < lengths,
    }[padding]
    arguments = {
        "attention_mask": None if padding == "none" else real.long(),
        "position_ids": None if shift is None else shift + lengths + places,
    }
    input_ids = tokens(rows, length)
    expected = stock(model)(input_ids, use_cache=False, **arguments).logits
    torch.testing.assert_close(
        model(input_ids, **arguments).logits[real], expected[real], rtol=1e-3, atol=1e-4
    )


def test_stock_bitnet_gives_the_same_hidden_states() -> None:
    model = build()
    found = model(tokens(), output_hidden_states=True).hidden_states
    expected = stock(model)(tokens(), output_hidden_states=True).hidden_states
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs)
    assert_close(model.model(tokens()).last_hidden_state, expected[-1])
    assert model(tokens()).hidden_states is None


def test_the_mlp_is_what_its_formula_says() -> None:
    mlp = BitNetLlamaMLP(BitNetLlamaConfig(**SIZES)).double()
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    inner = (x @ mlp.up_proj.weight.T) * (x @ mlp.gate_proj.weight.T).clamp(min=0) ** 2
    normed = inner / (inner.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(mlp(x), normed @ mlp.down_proj.weight.T)


def test_a_head_is_turned_by_the_positions_of_its_own_row() -> None:
    positions = torch.randint(0, 50, (ROWS, 6))
    x = torch.randn(ROWS, HEADS, 6, 8, dtype=torch.float64)
    expected = torch.empty_like(x)
    for row in range(ROWS):
        for place in range(6):
            for pair in range(4):
                angle = torch.tensor(positions[row, place].item() / 10_000 ** (pair / 4)).double()
                first, second = x[row, :, place, pair], x[row, :, place, pair + 4]
                expected[row, :, place, pair] = first * angle.cos() - second * angle.sin()
                expected[row, :, place, pair + 4] = second * angle.cos() + first * angle.sin()
    torch.testing.assert_close(rotate(x, angles(positions, 8, 10_000.0)), expected, rtol=1e-5, atol=1e-5)


@given(shift=st.integers(0, 1000), seed=st.integers(0, 100))
def test_products_of_turned_heads_depend_on_distance_alone(shift: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, keys = torch.randn(2, 1, 1, 5, 8, generator=generator)[:, None].double().unbind()
    queries, keys = queries.reshape(1, 1, 5, 8), keys.reshape(1, 1, 5, 8)

    def products(positions: Tensor) -> Tensor:
        angle = angles(positions, 8, 10_000.0)
        return rotate(queries, angle) @ rotate(keys, angle).transpose(-1, -2)

    positions = torch.arange(5)[None]
    torch.testing.assert_close(products(positions + shift), products(positions), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(ROWS, 4), (ROWS, 1, 6, 4), (1, HEADS, 6, 4), (1, 1, 5, 4)])
def test_angles_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="do not fit"):
        rotate(torch.zeros(ROWS - 1, HEADS, 6, 8), torch.zeros(shape))


def test_each_row_has_positions_of_its_own() -> None:
    model, input_ids = build(), tokens()
    # Gaps as well, so that a position counts and not only where a row begins.
    positions = torch.tensor([[0], [7], [100], [3]]) + torch.arange(9) * torch.tensor([[1], [1], [2], [5]])
    mask = torch.ones_like(input_ids)
    found = model(input_ids, mask, positions).logits
    expected = stock(model)(input_ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for row in range(ROWS):
        alone = model(input_ids[[row]], mask[[row]], positions[[row]]).logits[0]
        assert_close(found[row], alone)
    assert not torch.allclose(found[2], model(input_ids).logits[2], atol=1e-2)


@pytest.mark.parametrize("first", [1_000, 8_000, 40_000])
def test_far_positions_are_those_of_stock_bitnet(first: int) -> None:
    """An angle's rounding grows with position, so that it has to be the same."""
    model, input_ids = build(), tokens()
    positions = first + torch.arange(9).expand(ROWS, 9)
    arguments = {"attention_mask": torch.ones_like(input_ids), "position_ids": positions}
    assert_close(model(input_ids, **arguments).logits, stock(model)(input_ids, **arguments).logits)


def test_positions_that_are_written_out_change_nothing() -> None:
    model, input_ids = build(), tokens()
    expected = model(input_ids).logits
    assert_close(model(input_ids, position_ids=torch.arange(9)[None]).logits, expected)
    assert_close(model(input_ids, position_ids=torch.arange(9).expand(ROWS, 9)).logits, expected)


@pytest.mark.parametrize("mask", ["(B, S, S)", "(B, 1, S, S)", "not causal", "none"])
def test_packed_documents_are_as_each_alone(mask: str) -> None:
    model, input_ids = build(), tokens()
    lengths = [3, 9, 5, 1]
    positions = torch.stack([torch.cat((torch.arange(n), torch.arange(9 - n))) for n in lengths])
    first = torch.arange(9) < torch.tensor(lengths)[:, None]
    block = first[:, :, None] == first[:, None, :]
    causal = block & torch.ones(9, 9, dtype=torch.bool).tril()
    masks = {"(B, S, S)": causal, "(B, 1, S, S)": causal[:, None], "not causal": block, "none": None}
    found = model(input_ids, masks[mask], positions).logits
    for row, length in enumerate(lengths):
        assert_close(found[row, :length], model(input_ids[[row], :length]).logits[0])
        if length < 9:
            assert_close(found[row, length:], model(input_ids[[row], length:]).logits[0])
    assert_close(found, stock(model)(input_ids, position_ids=positions, use_cache=False).logits)


def padded(left: bool) -> tuple[Tensor, Tensor]:
    """Input and mask of rows that are 9, 5, 1 and 3 tokens long; what stands in the padding is arbitrary."""
    lengths = torch.tensor([[9], [5], [1], [3]])
    places = torch.arange(9)
    mask = places >= 9 - lengths if left else places < lengths
    return tokens(), mask.long()


@pytest.mark.parametrize("left", [True, False])
def test_padding_is_honoured_on_both_sides(left: bool) -> None:
    model = build()
    input_ids, mask = padded(left)
    found = model(input_ids, mask).logits
    expected = stock(model)(input_ids, attention_mask=mask).logits
    for row in range(ROWS):
        real = mask[row].bool()
        assert_close(found[row, real], expected[row, real])
        torch.testing.assert_close(
            found[row, real], model(input_ids[[row]][:, real]).logits[0], rtol=1e-3, atol=1e-4
        )


def textbook_attention(
    queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor, is_causal: bool
) -> Tensor:
    """Without the care that some of torch's kernels take of positions that may look nowhere."""
    assert not is_causal
    scores = queries @ keys.transpose(-1, -2) / keys.shape[-1] ** 0.5
    return scores.masked_fill(~attn_mask, -torch.inf).softmax(dim=-1) @ values


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("kernel", [F.scaled_dot_product_attention, textbook_attention])
def test_a_row_of_padding_makes_nothing_nan(left: bool, kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    model = build().train()
    input_ids, mask = padded(left)
    mask[1] = 0
    logits = model(input_ids, mask).logits
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_autocast_trains_in_bfloat16() -> None:
    model, input_ids = build().train(), tokens()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(input_ids, torch.ones_like(input_ids), labels=input_ids)
    found.loss.backward()
    assert found.logits.dtype == torch.bfloat16
    torch.testing.assert_close(found.logits.float(), model(input_ids).logits, rtol=0.1, atol=0.1)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_no_token_sees_a_later_one() -> None:
    model, input_ids = build(), tokens()
    other = input_ids.clone()
    other[:, 6:] = (other[:, 6:] + 1) % 61
    for mask in (None, torch.ones_like(input_ids)):
        assert_close(model(input_ids, mask).logits[:, :6], model(other, mask).logits[:, :6])


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_is_loaded_by_the_auto_class(tmp_path: Path, tied: bool) -> None:
    model = build(tie_word_embeddings=tied, hidden_act="silu", rope_theta=500.0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is BitNetLlama
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert loaded.get_input_embeddings() is loaded.model.embed_tokens
    assert loaded.get_output_embeddings() is loaded.lm_head


def test_without_a_head_it_saves_loads_and_converts(tmp_path: Path) -> None:
    model = build(has_lm_head=False)
    assert model.lm_head is None
    assert model.get_output_embeddings() is None
    assert model(tokens()).logits is None
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    expected = model.model(tokens()).last_hidden_state
    assert torch.equal(loaded.model(tokens()).last_hidden_state, expected)
    report = convert(loaded)
    assert len(report.converted) == 2 * 7
    assert report.left == ()
    assert torch.equal(loaded.model(tokens()).last_hidden_state, expected)
    set_lambda(loaded, 1.0)
    assert not torch.allclose(loaded.model(tokens()).last_hidden_state, expected)


def test_the_loss_is_that_of_the_next_token() -> None:
    model, input_ids = build(), tokens()
    labels = input_ids.clone()
    labels[0, :5] = -100
    log_probabilities = model(input_ids).logits.double().log_softmax(-1)
    terms = [
        -log_probabilities[row, place - 1, labels[row, place]]
        for row in range(ROWS)
        for place in range(1, 9)
        if labels[row, place] != -100
    ]
    assert_close(model(input_ids, labels=labels).loss.double(), torch.stack(terms).mean())
    with pytest.raises(BadInput, match="has_lm_head=True"):
        build(has_lm_head=False)(input_ids, labels=labels)


def test_the_stock_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = build(eos_token_id=1, pad_token_id=2)
    stock(model).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is BitNetForCausalLM
    assert (loaded.config.bos_token_id, loaded.config.eos_token_id, loaded.config.pad_token_id) == (
        None,
        1,
        2,
    )
    assert_close(loaded(tokens()).logits, model(tokens()).logits)
    with pytest.raises(BadInput, match="no lm_head"):
        as_huggingface_bitnet(build(has_lm_head=False))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"use_cache": True}, "use_cache=False"),
        ({"attention_mask": torch.zeros(ROWS, 1, 9, 9)}, "torch.float32"),
        ({"attention_mask": torch.ones(ROWS, 5)}, r"give \(B, S\)"),
        ({"attention_mask": torch.ones(ROWS, HEADS, 9, 9, dtype=torch.bool)}, r"give \(B, S\)"),
        ({"position_ids": torch.zeros(3, 9, dtype=torch.long)}, r"position_ids of shape \(3, 9\)"),
    ],
)
def test_what_means_nothing_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        build()(tokens(), **arguments)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": 36}, "hidden_size 36 is no multiple"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads 3"),
        ({"hidden_act": "gelu"}, "write relu2 or silu"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        BitNetLlamaConfig(**{**SIZES, **change})
