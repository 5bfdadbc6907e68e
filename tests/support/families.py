"""A small random model of each architecture that conversion knows, and a little training."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
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

from bitnet_trainer.models import sequence_classification  # noqa: F401  (tells the Auto classes of ours)
from bitnet_trainer.models.bitnet_llama import BitNetLlamaConfig
from bitnet_trainer.quantization.warmup import set_lambda

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
    "BitNetLlama": BitNetLlamaConfig,
}
TRANSFORMERS_ARCHITECTURES = (
    *(f"{family}ForCausalLM" for family in _CONFIGS if family != "BitNetLlama"),
    *(f"{family}ForSequenceClassification" for family in ("Llama", "Qwen2", "Qwen3")),
)
ARCHITECTURES = (*TRANSFORMERS_ARCHITECTURES, "BitNetLlama", "BitNetLlamaForSequenceClassification")


def small_model(architecture: str = "LlamaForCausalLM", seed: int = 0, **changes: object) -> PreTrainedModel:
    """Two layers with random weights, such as `small_model("Gemma3ForCausalLM", rms_norm_eps=1e-5)`."""
    torch.manual_seed(seed)
    family, _, _ = architecture.partition("For")
    sizes = {name: size for name, size in _SIZES.items() if name != "head_dim" or family != "BitNetLlama"}
    labels = {"num_labels": 3} if architecture.endswith("Classification") else {}
    config = _CONFIGS[family](**{**sizes, "tie_word_embeddings": True, **labels, **changes})
    # Away from zero, so that logits differ visibly between models.
    config.initializer_range = 0.2
    auto = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    return auto.from_config(config).eval()


def loss_of(model: PreTrainedModel, sequences: Tensor) -> Tensor:
    """Mean cross-entropy: of the next token, or, for a classifier, of a label that the first token gives."""
    logits = model(sequences).logits
    if type(model).__name__.endswith("Classification"):
        return F.cross_entropy(logits, sequences[:, 0] % 3)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), sequences[:, 1:].flatten())


def trained(model: PreTrainedModel, sequences: Tensor) -> PreTrainedModel:
    """`model` after three steps at lambda = 1."""
    set_lambda(model, 1.0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        loss_of(model, sequences).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model
