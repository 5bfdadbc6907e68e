"""LanguageModel: what objectives see of a model is what transformers computes."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from bitnet_trainer.answer import Capture
from bitnet_trainer.models.view import LanguageModel

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 61,
    "pad_token_id": 0,
}
FAMILIES = (LlamaConfig, Qwen2Config, Qwen3Config, GemmaConfig, Gemma2Config, Gemma3TextConfig)


@pytest.fixture(params=FAMILIES, ids=lambda family: family.model_type)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    config: PretrainedConfig = request.param(**SIZES)
    # Gemma 2 caps attention logits, which SDPA leaves out.
    config._attn_implementation = "eager"
    return AutoModelForCausalLM.from_config(config).eval()


def test_head_of_hidden_is_the_models_logits(model: PreTrainedModel) -> None:
    input_ids = torch.randint(1, 61, (2, 7))
    answer = LanguageModel(model)(input_ids)
    expected = model(input_ids=input_ids, use_cache=False).logits
    torch.testing.assert_close(answer.head(answer.hidden), expected, rtol=0, atol=0)
    piecewise = torch.cat([answer.head(answer.hidden[:, i]) for i in range(7)]).reshape(7, 2, 61)
    torch.testing.assert_close(piecewise.transpose(0, 1), expected)


def test_the_head_is_the_linear_itself_unless_logits_are_capped(model: PreTrainedModel) -> None:
    """Of which a loss makes the gradients itself."""
    linear = LanguageModel(model).head is model.get_output_embeddings()
    assert linear == (model.config.model_type != "gemma2")


def test_a_classifiers_logits_are_not_capped() -> None:
    """Gemma 2 caps the logits of its language model, and transformers those alone."""
    torch.manual_seed(0)
    config = Gemma2Config(**SIZES, num_labels=2, final_logit_softcapping=0.01)
    classifier = AutoModelForSequenceClassification.from_config(config).eval()
    input_ids = torch.randint(1, 61, (2, 7))
    answer = LanguageModel(classifier)(input_ids)
    expected = classifier(input_ids=input_ids).logits
    torch.testing.assert_close(answer.head(answer.hidden[:, -1]), expected)


def test_padding_is_honoured(model: PreTrainedModel) -> None:
    input_ids = torch.randint(1, 61, (2, 7))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    answer = LanguageModel(model)(input_ids, mask)
    alone = LanguageModel(model)(input_ids[1:, :4])
    torch.testing.assert_close(answer.hidden[1, :4], alone.hidden[0])


def test_hidden_states_are_those_of_each_layer(model: PreTrainedModel) -> None:
    input_ids = torch.randint(1, 61, (2, 7))
    answer = LanguageModel(model)(input_ids, None, Capture(hidden_states=True))
    expected = model.base_model(input_ids=input_ids, output_hidden_states=True).hidden_states
    assert len(answer.hidden_states) == 3
    # transformers puts the embeddings before them, and the last one behind the final norm.
    for number, states in enumerate(expected[1:-1]):
        torch.testing.assert_close(answer.hidden_states[number], states, rtol=0, atol=0)
    torch.testing.assert_close(model.base_model.norm(answer.hidden_states[-1]), answer.hidden)


def test_projections_are_those_of_the_layer_asked_for(model: PreTrainedModel) -> None:
    input_ids = torch.randint(1, 61, (2, 7))
    view = LanguageModel(model)
    assert (view.layers, view.key_heads) == (3, 2)
    answer = view(input_ids, None, Capture(hidden_states=True, projections=frozenset({1})))
    assert set(answer.projections) == {1}
    layer = model.base_model.layers[1]
    normed = layer.input_layernorm(answer.hidden_states[0])
    found = answer.projections[1]
    torch.testing.assert_close(found.queries, layer.self_attn.q_proj(normed))
    torch.testing.assert_close(found.keys, layer.self_attn.k_proj(normed))
    torch.testing.assert_close(found.values, layer.self_attn.v_proj(normed))


def test_nothing_is_kept_that_nobody_asked_for(model: PreTrainedModel) -> None:
    view = LanguageModel(model)
    view(torch.randint(1, 61, (1, 5)), None, Capture(hidden_states=True, projections=frozenset({0})))
    answer = view(torch.randint(1, 61, (1, 5)))
    assert answer.hidden_states == ()
    assert answer.projections == {}
    assert not any(module._forward_hooks for module in view.modules())


def test_gradients_reach_what_is_captured(model: PreTrainedModel) -> None:
    model.train()
    answer = LanguageModel(model)(
        torch.randint(1, 61, (2, 7)), None, Capture(hidden_states=True, projections=frozenset({2}))
    )
    (answer.hidden_states[0].sum() + answer.projections[2].keys.square().sum()).backward()
    assert model.base_model.layers[2].self_attn.k_proj.weight.grad.abs().sum() > 0
    assert model.base_model.layers[2].self_attn.q_proj.weight.grad is None
