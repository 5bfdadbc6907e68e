"""A small random model of each architecture that conversion knows in transformers."""

from collections.abc import Mapping

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 61
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}

_CONFIGS: Mapping[str, type[PreTrainedConfig]] = {
    "Llama": LlamaConfig,
    "Qwen2": Qwen2Config,
    "Qwen3": Qwen3Config,
    "Gemma": GemmaConfig,
    "Gemma2": Gemma2Config,
    "Gemma3": Gemma3TextConfig,
}
CLASSIFIERS = tuple(f"{family}ForSequenceClassification" for family in ("Llama", "Qwen2", "Qwen3"))
TRANSFORMERS_ARCHITECTURES = (*(f"{family}ForCausalLM" for family in _CONFIGS), *CLASSIFIERS)


def small_model(architecture: str = "LlamaForCausalLM", seed: int = 0, **changes: object) -> PreTrainedModel:
    """Two layers with random weights, such as `small_model("Gemma3ForCausalLM", rms_norm_eps=1e-5)`."""
    torch.manual_seed(seed)
    family, _, _ = architecture.partition("For")
    classifies = architecture in CLASSIFIERS
    labels = {"num_labels": 3} if classifies else {}
    config = _CONFIGS[family](**{**_SIZES, "tie_word_embeddings": True, **labels, **changes})
    # Away from zero, so that logits differ visibly between models.
    config.initializer_range = 0.2
    auto = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    return auto.from_config(config).eval()
