"""Int8 weights: the error bound of each, what stays as it was, and what it saves."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bitnet_trainer.errors import BadInput
from bitnet_trainer.quantization.int8_linear import Int8Linear, quantize_to_int8
from families import small_model

numbers = st.floats(-1e4, 1e4, allow_nan=False, width=32)
matrices = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=1, max_size=5)
)


@given(matrices)
def test_no_weight_is_off_by_more_than_half_a_step_of_its_row(rows: list[list[float]]) -> None:
    weight = torch.tensor(rows)
    linear = nn.Linear(weight.shape[1], len(rows), bias=False)
    linear.weight = nn.Parameter(weight)
    layer = Int8Linear(linear)
    error = (layer.codes.double() * layer.scale.double() - weight.double()).abs()
    bound = weight.double().abs().amax(dim=1, keepdim=True) / 127 / 2
    # float32 holds no number below 1e-45, and rounds a scale by a part in 10 million.
    assert (error <= bound * (1 + 1e-4) + 1e-42).all()


def test_the_output_is_the_dequantised_linears() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(16, 8)
    layer = Int8Linear(linear)
    x = torch.randn(2, 3, 16)
    scale = linear.weight.detach().double().abs().amax(1, keepdim=True) / 127
    weight = scale * (linear.weight.detach().double() / scale).round()
    expected = x.double() @ weight.T + linear.bias.detach().double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x.bfloat16()).double(), expected, rtol=0.05, atol=0.05)
    assert not list(layer.parameters())


@pytest.fixture
def teacher():
    return small_model("Qwen3ForCausalLM", hidden_size=64, intermediate_size=128).requires_grad_(False)


def test_linears_of_the_layers_are_replaced_and_all_else_stays(teacher, sequences) -> None:
    before = copy.deepcopy(teacher)
    assert quantize_to_int8(teacher) == 2 * 7
    assert sum(isinstance(module, Int8Linear) for module in teacher.model.layers.modules()) == 2 * 7
    assert not any(type(module) is nn.Linear for module in teacher.model.layers.modules())
    assert type(teacher.lm_head) is nn.Linear
    assert teacher.lm_head.weight is teacher.model.embed_tokens.weight
    kept = dict(teacher.named_parameters())
    assert all(torch.equal(parameter, before.get_parameter(name)) for name, parameter in kept.items())
    close, far = (
        nn.functional.kl_div(
            model(sequences).logits.log_softmax(-1),
            before(sequences).logits.log_softmax(-1),
            log_target=True,
            reduction="batchmean",
        )
        for model in (teacher, small_model("Qwen3ForCausalLM", 1, hidden_size=64, intermediate_size=128))
    )
    assert close < 0.02 * far


def test_the_layers_take_a_quarter_of_their_memory_and_a_scale_a_row(teacher) -> None:
    def bytes_of_linears(model: nn.Module) -> int:
        return sum(
            tensor.nbytes
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if "_proj." in name
        )

    rows = sum(layer.out_features for layer in teacher.model.layers.modules() if type(layer) is nn.Linear)
    before = bytes_of_linears(teacher)
    quantize_to_int8(teacher)
    assert bytes_of_linears(teacher) == before / 4 + 4 * rows


def test_in_bfloat16_it_computes_in_bfloat16(teacher, sequences) -> None:
    expected = teacher(sequences).logits
    teacher.bfloat16()
    quantize_to_int8(teacher)
    found = teacher(sequences).logits
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_a_trained_model_is_refused() -> None:
    with pytest.raises(BadInput, match=r"embed_tokens.weight of LlamaForCausalLM is trained"):
        quantize_to_int8(small_model())


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(BadInput, match="has no linear in a list of layers"):
        quantize_to_int8(nn.Sequential(nn.Linear(2, 2)).requires_grad_(False))
