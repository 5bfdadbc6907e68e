"""Attention without a dense mask computes what it does with one, in one compiled layer for all."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from bitnet_trainer import setup
from bitnet_trainer.answer import Capture
from bitnet_trainer.batch import Rows
from bitnet_trainer.documents import cumulative_lengths, dense_mask
from bitnet_trainer.models import attention, attention_backends
from bitnet_trainer.models.attention import attend
from bitnet_trainer.models.attention_backends import (
    BACKENDS,
    Attended,
    AttentionShape,
    fastest,
    measure,
    reference,
)
from bitnet_trainer.models.attention_logits import LargestLogits
from bitnet_trainer.models.view import LanguageModel
from families import ARCHITECTURES, small_model

EOS, LENGTH = 1, 16
CPU = torch.device("cpu")
SHAPE = AttentionShape(batch=2, heads=4, key_heads=2, length=LENGTH, head_dim=8)


def packed_rows(seed=0):
    """Three rows, in which a token of four ends a document."""
    tokens = torch.randint(2, 60, (3, LENGTH), generator=torch.Generator().manual_seed(seed))
    ends = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.25
    return Rows.of_documents(tokens.masked_fill(ends, EOS), EOS)


ROWS = packed_rows()
DOCUMENTS = cumulative_lengths(ROWS.position_ids)


@given(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=3))
def test_documents_are_counted_and_see_themselves_alone(ends):
    """By brute force."""
    tokens = torch.where(torch.tensor(ends), EOS, 5)
    position_ids = Rows.of_documents(tokens, EOS).position_ids
    documents, number = [], -1
    for row in position_ids.tolist():
        documents.append([])
        for place, position in enumerate(row):
            number += place == 0 or position == 0
            documents[-1].append(number)
    cu_seqlens = cumulative_lengths(position_ids)
    flat = [each for row in documents for each in row]
    begins = [place for place, each in enumerate(flat) if place == 0 or flat[place - 1] != each]
    assert cu_seqlens.dtype == torch.int32
    assert len(cu_seqlens) - 1 in (4 * len(ends), 16 * len(ends))
    assert cu_seqlens.tolist() == begins + [len(flat)] * (len(cu_seqlens) - len(begins))
    expected = [
        [[row[key] == row[query] and key <= query for key in range(12)] for query in range(12)]
        for row in documents
    ]
    assert dense_mask(cu_seqlens, len(ends), 12)[:, 0].tolist() == expected


def test_very_short_documents_are_not_packed():
    tokens = torch.full((2, 256), 5)
    tokens[:, ::8] = EOS
    assert cumulative_lengths(Rows.of_documents(tokens, EOS).position_ids) is None


def passes(view, documents, position_ids=ROWS.position_ids):
    """Hidden states, and the gradients of the embeddings and of a layer's values."""
    view.zero_grad()
    hidden = view(ROWS.input_ids, None, Capture(), position_ids, documents).hidden
    hidden.square().sum().backward()
    embedding, layer = view.model.get_input_embeddings(), view.decoder_layers[0].self_attn
    return hidden.detach(), embedding.weight.grad.clone(), layer.v_proj.weight.grad.clone()


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "sliding Gemma3ForCausalLM"])
def test_documents_without_a_mask_are_as_with_one(architecture, monkeypatch):
    """Whatever `attend` cannot do, it is not asked for: capped logits, and windows shorter than a row."""
    name = architecture.removeprefix("sliding ")
    model = small_model(name, **({"sliding_window": 4} if name != architecture else {}))
    view = LanguageModel(model.double().train())
    expected = passes(view, None)
    calls = []
    monkeypatch.setattr(attention, "dense_mask", lambda *args: calls.append(args) or dense_mask(*args))
    before = model.config._attn_implementation
    for one, other in zip(passes(view, DOCUMENTS), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    done = name == architecture and not name.startswith("Gemma2")
    assert len(calls) == (2 if done else 0)
    assert model.config._attn_implementation == before


def test_the_largest_logits_are_taken_without_a_mask_too():
    model = small_model("Qwen3ForCausalLM").train()
    largest, view = LargestLogits(model), LanguageModel(model)
    found = []
    for documents in (None, DOCUMENTS):
        largest.forget()
        view(ROWS.input_ids, None, Capture(), ROWS.position_ids, documents)
        found.append(largest.values.clone())
    assert found[0].isfinite().all()
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # asked by dynamo
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3ForCausalLM", "BitNetLlama"])
@pytest.mark.parametrize("documents", [DOCUMENTS, None], ids=["documents", "whole rows"])
def test_layers_are_one_graph_without_breaks(architecture, documents):
    """Under autocast too, and while each tells its largest logits."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = small_model(architecture, num_attention_heads=6, num_key_value_heads=2, hidden_size=48).train()
    largest, view = LargestLogits(model), LanguageModel(model)

    def told():
        largest.forget()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            position_ids = None if documents is None else ROWS.position_ids
            return *passes(view, documents, position_ids), largest.values.clone()

    expected = told()
    for layer in view.decoder_layers:
        layer.compile(backend=counter, fullgraph=True, dynamic=False)
    told()
    for one, other in zip(told(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)
    assert expected[-1].isfinite().all()
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize(("backend", "packed"), [(None, True), *((name, False) for name in BACKENDS)])
def test_kernels_of_cuda_are_called_as_torch_has_them(backend, packed):
    """By their shapes alone, which torch tells without a GPU."""
    module = SimpleNamespace(training=False, attention_backend=backend)
    # Which kernel of variable length it takes, torch asks the GPU, unless there is but one to take.
    with FakeTensorMode(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        query, key = (
            torch.empty(2, LENGTH, heads, 8, dtype=torch.bfloat16, device="cuda").transpose(1, 2)
            for heads in (4, 2)
        )
        cu_seqlens = torch.empty(9, dtype=torch.int32, device="cuda") if packed else None
        out = attend(module, query, key, key, 0.5, cu_seqlens)
        if backend is not None:
            assert BACKENDS[backend](query, key, key, 0.5).lse.shape == (2, 4, LENGTH)
    assert out.shape == (2, LENGTH, 4, 8)
    assert out.dtype == torch.bfloat16


def test_a_backend_that_is_wrong_or_refuses_is_not_measured(monkeypatch, caplog):
    def without_scale(query, key, value, scale):
        del scale
        return reference(query, key, value, 1.0)

    def wrong_lse(query, key, value, scale):
        right = reference(query, key, value, scale)
        return Attended(right.out, right.lse * 1.3)

    def refusing(*_):
        raise RuntimeError("no kernel found\nand a trace")

    def absent(query, *_):
        return torch.ops.aten._no_such_attention(query)

    monkeypatch.setattr(attention_backends, "_seconds", lambda action, _: action() or 0.25)
    offered = {"a": without_scale, "b": wrong_lse, "c": refusing, "d": absent, "e": reference}
    assert measure(SHAPE, CPU, torch.float32, offered) == {"e": 0.25}
    said = [record.getMessage() for record in caplog.records]
    assert ["is wrong by" in line for line in said] == [True, True, False, False]
    assert said[2].endswith("no kernel found")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({}, None),
        ({"cuDNN": 1.01, "flash": 1.0, "efficient": 3.0}, "cuDNN"),
        ({"cuDNN": 1.1, "flash": 1.0}, "flash"),
    ],
)
def test_the_fastest_is_taken_and_what_is_as_fast_does_not_change_it(seconds, expected):
    assert fastest(seconds) == expected


def test_all_ranks_take_what_the_first_one_measured(monkeypatch):
    told = []

    def ranks(first):
        return SimpleNamespace(
            device=torch.device("cuda"),
            first=first,
            from_first=lambda chosen: told.append(chosen) or told[0],
        )

    order = SimpleNamespace(
        spec=SimpleNamespace(classification=None, data=SimpleNamespace(documents="Joined")),
        plan=SimpleNamespace(sequence_length=LENGTH),
    )
    asked = []
    monkeypatch.setattr(setup, "measure", lambda shape, _: asked.append(shape) or {"flash": 1.0})
    for first in (True, False):
        student = LanguageModel(small_model())
        setup.settle_attention(order, student, 2, ranks(first))
        assert {layer.self_attn.attention_backend for layer in student.decoder_layers} == {"flash"}
    assert asked == [SHAPE]
    order.spec.data.documents = "Separate"
    setup.settle_attention(order, LanguageModel(small_model()), 2, ranks(True))
    assert told == ["flash", None]
