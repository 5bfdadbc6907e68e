"""Queries, keys and values as one function of codes: formula, kernels beside twins, where it is taken."""

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM

from bitnet_trainer.answer import Answer, Capture
from bitnet_trainer.models import heads as models_heads
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.heads import heads_of_codes
from bitnet_trainer.models.rope import angles, rotate
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.codes import quantize_weights
from bitnet_trainer.quantization.heads_training import (
    Gains,
    Turns,
    projected_heads,
    turned,
    turned_back,
)
from bitnet_trainer.quantization.int8_training import (
    dequantized,
    int8_codes,
    int8_linear,
    token_codes,
)
from families import small_model
from functions_of_codes import CHANGES, drawn, launches_in_one_graph

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPSILON = 1e-5
NOTHING = Capture()
_CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
OF_CODES = ("LlamaForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM", "BitNetLlama")
each_architecture = pytest.mark.parametrize("architecture", OF_CODES)


def _angles(rows: int, length: int, channels: int) -> Tensor:
    """As `angles` gives; each row begins at a position of its own."""
    return angles(torch.arange(length) + 7 * torch.arange(rows)[:, None], channels, 100.0)


def _turns(angle: Tensor) -> Turns:
    return angle.cos()[:, 0], angle.sin()[:, 0]


def _formula(x: Tensor, gain: Tensor | None, angle: Tensor, batch: int) -> Tensor:
    """(N, H, d) of `batch` rows -> likewise, by `rotate`."""
    if gain is not None:
        x = F.rms_norm(x, gain.shape, gain, EPSILON)
    return rotate(x.view(batch, -1, *x.shape[1:]).transpose(1, 2), angle).transpose(1, 2).flatten(0, 1)


@given(
    seed=st.integers(0, 2**20),
    batch=st.integers(1, 3),
    length=st.integers(1, 9),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    channels=st.sampled_from([2, 8]),
    normed=st.booleans(),
    by_row=st.booleans(),
    size=st.sampled_from([1.0, 1e-9]),
)
def test_heads_and_gradients_are_those_of_the_formula(
    seed: int,
    batch: int,
    length: int,
    heads: tuple[int, int],
    channels: int,
    normed: bool,
    by_row: bool,
    size: float,
) -> None:
    widths, angle = (
        [many * channels for many in (*heads, heads[1])],
        _angles(batch if by_row else 1, length, channels),
    )
    x, *others = drawn(
        seed, (batch, length, 12), *[(width, 12) for width in widths], (channels,), (channels,)
    )
    weights, gains = others[:3], (others[3] + 2, others[4] + 2)
    factors = [each.requires_grad_() for each in (x, *weights, *(gains if normed else ()))]
    given = gains if normed else None
    found = projected_heads(x, weights, given, _turns(angle), EPSILON, torch.float64)
    upstream = [each * size for each in drawn(seed + 1, *[each.shape for each in found])]
    to_x, *to_rest = torch.autograd.grad(found, factors, upstream)

    rows = x.flatten(0, 1)
    products = [
        int8_linear(rows, weight, torch.float64).detach().view(len(rows), -1, channels) for weight in weights
    ]
    inputs = [
        *(each.requires_grad_() for each in products),
        *(each.detach().requires_grad_() for each in gains),
    ]
    expected = [
        _formula(each, gain if normed else None, angle, batch)
        for each, gain in zip(inputs[:2], inputs[3:], strict=True)
    ]
    close: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}  # scales and angles are float32
    for one, other in zip(found, (*expected, products[2]), strict=True):
        torch.testing.assert_close(one.flatten(0, 1), other, **close)
    arriving = torch.autograd.grad(
        (*expected, products[2]), inputs, [each.flatten(0, 1) for each in upstream], allow_unused=not normed
    )
    close = {"rtol": 1e-5, "atol": 1e-5 * size}
    tokens = dequantized(*token_codes(rows), torch.float64)
    for one, other in zip(to_rest, arriving[:3], strict=False):
        torch.testing.assert_close(one, other.flatten(1).T @ tokens, **close)
    for one, other in zip(to_rest[3:], arriving[3:], strict=False):
        torch.testing.assert_close(one, other, **close)
    codes, scales = zip(*(quantize_weights(weight) for weight in weights), strict=True)
    scaled = torch.cat(
        [each.flatten(1) * scale for each, scale in zip(arriving, scales, strict=False)], dim=1
    )
    made = turned_back(
        tuple(each.flatten(0, 1) for each in upstream),
        (products[0].detach(), products[1].detach()),
        None if given is None else (gains[0].detach(), gains[1].detach()),
        _turns(angle),
        scales,
        EPSILON,
    )
    # To the nearest; ties, which small whole numbers make, are any.
    assert ((made.codes - scaled * made.codes_per_unit).abs() < 0.5001).all()
    rounded = dequantized(made.codes, made.codes_per_unit, torch.float64)
    torch.testing.assert_close(to_x.flatten(0, 1), rounded @ torch.cat(codes), **close)


def _on_device(
    heads: tuple[int, int], channels: int, *, bad: float = 1.0
) -> tuple[list[Tensor], list[Tensor]]:
    """Queries and keys, then gradients of both and of values, bfloat16, of two rows of 3 tokens: one token of
    zeros, one of ties, one with a bad number."""
    shapes = [(6, many, channels) for many in (*heads, *heads, heads[1])]
    queries, keys, to_q, to_k, to_v = drawn(0, *shapes, dtype=torch.bfloat16)
    for each in (to_q, to_k, to_v):
        each[1:3] = 0
    to_v[2, 0] = torch.tensor([127.0, 0.5, 1.5, -2.5] * (channels // 4))
    to_v[4, 0, 0] = bad
    return [queries.to(DEVICE), keys.to(DEVICE)], [each.to(DEVICE) for each in (to_q, to_k, to_v)]


@pytest.mark.parametrize("normed", [True, False], ids=["normed", "plain"])
@pytest.mark.parametrize("by_row", [True, False], ids=["by row", "shared"])
@pytest.mark.parametrize(("heads", "channels"), [((3, 1), 16), ((4, 2), 8)])
def test_kernels_are_their_twins(heads: tuple[int, int], channels: int, by_row: bool, normed: bool) -> None:
    from bitnet_trainer.quantization.kernels import heads as kernels

    inputs, gradients = _on_device(heads, channels)
    angle = _angles(2 if by_row else 1, 3, channels)
    # Halves of what is twice as wide, as transformers has them.
    wide = [torch.cat((each, each), dim=-1).to(DEVICE)[..., : channels // 2] for each in _turns(angle)]
    turns, given = (wide[0], wide[1]), (inputs[0], inputs[1])
    shifted = [each.to(DEVICE) + 2 for each in drawn(1, (channels,), (channels,), dtype=torch.float32)]
    gains: Gains = (shifted[0], shifted[1]) if normed else None
    host = _on_host(given), None if gains is None else _on_host(gains), _on_host(turns)
    for one, other in zip(kernels.turned(given, gains, turns, EPSILON), turned(*host, EPSILON), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=2**-7, atol=1e-5)
    scales = [torch.tensor(size, device=DEVICE) for size in (0.5, 0.25, 1.0)]
    found = kernels.turned_back(tuple(gradients), given, gains, turns, tuple(scales), EPSILON)
    before, codes, per_unit, to_gains = (each.cpu() for each in found)
    twin = turned_back(_on_host(gradients), *host, _on_host(scales), EPSILON)
    torch.testing.assert_close(before, twin.before, rtol=2**-7, atol=1e-5)
    torch.testing.assert_close(per_unit, twin.codes_per_unit, rtol=1e-5, atol=0)
    values = (heads[0] + heads[1]) * channels
    assert codes[2, values : values + 4].tolist() == [127, 0, 2, -2]
    assert not codes[1].any()
    away = (codes.float() - twin.codes.float()).abs()  # ties that other roundings made or broke
    assert away.max() <= 1
    assert away.mean() < 0.01
    if normed:
        torch.testing.assert_close(to_gains, twin.to_gains, rtol=1e-4, atol=1e-4)


def _on_host(tensors: Any) -> Any:
    return tuple(each.cpu() for each in tensors)


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")  # the interpreter's
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_token_with_a_number_that_is_none_stays_without_one(bad: float) -> None:
    from bitnet_trainer.quantization.kernels import heads as kernels

    (queries, keys), gradients = _on_device((3, 1), 16, bad=bad)
    cos, sin = (each.to(DEVICE) for each in _turns(_angles(1, 3, 16)))
    one = torch.ones((), device=DEVICE)
    _, codes, per_unit, _ = kernels.turned_back(
        tuple(gradients), (queries, keys), None, (cos, sin), (one, one, one), EPSILON
    )
    rounded = dequantized(codes, per_unit, torch.float32)
    assert rounded.isfinite().all(dim=1).tolist() == [True] * 4 + [False, True]


def test_kernels_are_launched_by_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "bitnet_trainer.quantization.kernels.heads"
    kernels = pytest.importorskip(name)

    def both(x: Tensor) -> Tensor:
        heads = kernels.turned((x, x), None, (turn, turn), EPSILON)
        return kernels.turned_back((*heads, x), (x, x), None, (turn, turn), (one, one, one), EPSILON)[0]

    x, turn, one = torch.ones(2, 3, 4), torch.ones(1, 2, 2), torch.ones(())
    assert launches_in_one_graph(monkeypatch, name, both, x, gives=(x,)) == 2


@pytest.fixture
def by_codes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """As on CUDA at lambda 1; what `projected_heads` is called with."""
    monkeypatch.setattr(BitLinear, "_by_codes", lambda *_: True)
    calls: list[Any] = []

    def noted(*given: Any) -> Any:
        calls.append(given)
        return projected_heads(*given)

    monkeypatch.setattr(models_heads, "projected_heads", noted)
    return calls


def _model(architecture: str = "Qwen3ForCausalLM") -> LanguageModel:
    model = small_model(architecture)
    convert(model)
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            nn.init.uniform_(parameter, 0.5, 2)
    return LanguageModel(model.train())


def _answer(model: LanguageModel, capture: Capture = NOTHING) -> Answer:
    """Of two rows, each a document; what attends to documents has one dtype of queries, keys and values."""
    documents = torch.tensor([0, 6, 12], dtype=torch.int32)
    positions = torch.arange(6).expand(2, -1)
    answer: Answer = model(
        torch.arange(12).view(2, 6), capture=capture, position_ids=positions, documents=documents
    )
    return answer


@each_architecture
@pytest.mark.parametrize("which", ["q_proj", "v_proj"])
def test_as_one_function_heads_are_what_the_linears_make(
    architecture: str, which: str, by_codes: list[Any]
) -> None:
    model = _model(architecture)
    found = []
    for one in (True, False):
        for layer in model.decoder_layers:
            getattr(layer.self_attn, which).int8_backward = one
        hidden = _answer(model).hidden
        parameters = {name: each for name, each in model.named_parameters() if "self_attn" in name}
        found.append((hidden, *torch.autograd.grad(hidden.square().sum(), parameters.values())))
    assert len(by_codes) == 2
    for one, other in zip(*found, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert (one - other).norm() < 0.1 * other.norm()


HINDRANCES: dict[str, Callable[[BitLinear], object]] = {
    **CHANGES,
    "a hook": lambda linear: linear.register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("which", ["q_proj", "k_proj", "v_proj"])
@pytest.mark.parametrize("change", HINDRANCES)
def test_linears_that_do_more_are_called(change: str, which: str, by_codes: list[Any]) -> None:
    attention: Any = _model().decoder_layers[0].self_attn
    x, turns = torch.ones(1, 3, 32), _turns(_angles(1, 3, 8))
    assert heads_of_codes(attention, x, turns) is not None
    HINDRANCES[change](getattr(attention, which))
    assert heads_of_codes(attention, x, turns) is None
    assert len(by_codes) == 1


def test_a_norm_that_is_looked_into_is_called(by_codes: list[Any]) -> None:
    attention: Any = _model().decoder_layers[0].self_attn
    seen: list[Any] = []
    attention.k_norm.register_forward_hook(lambda *given: seen.append(given))
    assert heads_of_codes(attention, torch.ones(1, 3, 32), _turns(_angles(1, 3, 8))) is None
    assert by_codes == []


@pytest.mark.parametrize(
    ("architecture", "channels", "most", "held"),
    [
        ("LlamaForCausalLM", 8, 64, True),
        ("LlamaForCausalLM", 8, 63, False),
        ("Qwen3ForCausalLM", 8, 128, True),
        ("Qwen3ForCausalLM", 8, 127, False),
        ("LlamaForCausalLM", 12, 16_384, False),
    ],
)
def test_heads_that_no_program_holds_are_left(
    architecture: str,
    channels: int,
    most: int,
    held: bool,
    by_codes: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight heads of a token; with norms they take twice the registers."""
    monkeypatch.setattr(models_heads, "MOST_VALUES", most)
    model: Any = small_model(architecture, head_dim=channels)
    convert(model)
    attention = model.model.layers[0].self_attn
    found = heads_of_codes(attention, torch.ones(1, 3, 32), _turns(_angles(1, 3, channels)))
    assert (found is not None) == held == bool(by_codes)


@each_architecture
def test_projections_that_an_objective_captures_are_there(architecture: str, by_codes: list[Any]) -> None:
    answer = _answer(_model(architecture), Capture(projections=frozenset({1})))
    assert answer.projections[1].queries.shape == (2, 6, 32)
    assert len(by_codes) == 1  # of layer 0


def test_keys_and_values_of_earlier_tokens_are_taken(by_codes: list[Any]) -> None:
    model: Any = small_model("LlamaForCausalLM").bfloat16()
    convert(model)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        before = DynamicCache()
        model(ids[:, :4], **{_CACHE: before})
        last = model(ids[:, 4:], **{_CACHE: before}).logits[:, -1]
        assert by_codes == []
        whole = model(ids, use_cache=False).logits[:, -1]
    assert len(by_codes) == 2
    assert (last - whole).norm() < 0.02 * whole.norm()


def test_kept_codes_are_taken(by_codes: list[Any]) -> None:
    attention: Any = _model().decoder_layers[0].self_attn
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        linear.kept = int8_codes(torch.zeros_like(linear.weight))
    heads = heads_of_codes(attention, torch.ones(1, 3, 32), _turns(_angles(1, 3, 8)))
    assert heads is not None
    assert not any(each.any() for each in heads)
    assert len(by_codes) == 1


def test_conversion_leaves_attention_that_computes_something_else() -> None:
    for architecture in ("Gemma2ForCausalLM", "Gemma3ForCausalLM"):
        model = small_model(architecture)
        before = [type(layer.self_attn) for layer in model.model.layers]
        convert(model)
        assert [type(layer.self_attn) for layer in model.model.layers] == before


def test_a_copy_computes_with_its_own_weights(by_codes: list[Any]) -> None:
    model = _model()
    copied, expected = copy.deepcopy(model), _answer(model).hidden
    with torch.no_grad():
        copied.decoder_layers[0].self_attn.v_proj.weight.zero_()
    assert not torch.equal(_answer(copied).hidden, expected)
    assert torch.equal(_answer(model).hidden, expected)
    assert len(by_codes) == 6
