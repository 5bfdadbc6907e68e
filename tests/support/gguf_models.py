"""Models of rows that every GGUF format fits, with a tokenizer of their family's, trained a little."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import families
from bitnet_crds.spec import Quantization
from bitnet_trainer.export.gguf_tokenizer import PRE_TOKENIZERS
from bitnet_trainer.models.convert import ConversionReport, convert
from byte_level import TEXT, byte_level_tokenizer
from families import small_model

SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "vocab_size": 330,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "smollm", {}),
    "llama, untied, biases, wide heads": (
        "LlamaForCausalLM",
        "gpt-2",
        {"tie_word_embeddings": False, "attention_bias": True, "head_dim": 128},
    ),
    "llama 3": ("LlamaForCausalLM", "llama-bpe", {"rope_parameters": LLAMA3_ROPE}),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", {}),
    "qwen3": ("Qwen3ForCausalLM", "qwen2", {"tie_word_embeddings": False, "head_dim": 128}),
}
"""By a name for tests: architecture, splitting rule, changes to `SIZES`."""


@dataclass(frozen=True)
class Trained:
    """What an export is given, and the text's tokens (1, S)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    report: ConversionReport
    tokens: torch.Tensor


def trained(name: str, quantization: Quantization | None = None) -> Trained:
    """A model of `MODELS` after three steps at lambda = 1 on `byte_level.TEXT`, biases away from zero."""
    architecture, rule, changes = MODELS[name]
    tokenizer = byte_level_tokenizer(PRE_TOKENIZERS[rule])
    tokens = torch.tensor([tokenizer(TEXT).input_ids])
    model = small_model(architecture, **{**SIZES, **changes})
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(0, 0.3)
    report = convert(model, quantization or Quantization())
    return Trained(families.trained(model, tokens), tokenizer, report, tokens)
