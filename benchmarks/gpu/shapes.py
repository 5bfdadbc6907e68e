"""Shapes of the models that are measured, and the operations that a step of one of them must do."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM


@dataclass(frozen=True)
class Shape:
    """Sizes of a published decoder with tied embeddings, whose weights are drawn at random here."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    vocabulary: int
    qk_norm: bool
    """Whether it is a Qwen3, which has one; else a Llama."""

    def build(self, device: torch.device) -> PreTrainedModel:
        """The model in transformers' own class, float32, training, attention by torch's SDPA.

        The same weights each time.
        """
        sizes = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "attn_implementation": "sdpa",
            "use_cache": False,
        }
        torch.manual_seed(0)
        with device:
            if self.qk_norm:
                return Qwen3ForCausalLM(Qwen3Config(**sizes)).float().train()
            return LlamaForCausalLM(LlamaConfig(**sizes)).float().train()

    @property
    def projections(self) -> int:
        """Weights in the linears of all layers."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.key_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    def operations(self, batch: int, sequence: int) -> "Operations":
        """What a step of (batch, sequence) tokens needs, forward and backward, nothing computed twice."""
        tokens = batch * sequence
        return Operations(
            projections=6 * self.projections * tokens,
            head=6 * self.hidden * self.vocabulary * tokens,
            # Half of the products of queries and keys and of their softmax and values: it is causal.
            attention=6 * self.layers * sequence * self.heads * self.head_dim * tokens,
        )


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a step's products, by where they are. A third is the forward pass."""

    projections: int
    head: int
    attention: int

    @property
    def total(self) -> int:
        """Of all three."""
        return self.projections + self.head + self.attention


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "tiny": Shape(64, 192, 2, 4, 2, 16, 512, qk_norm=True),
        "135M": Shape(576, 1536, 30, 9, 3, 64, 49_152, qk_norm=False),
        "0.6B": Shape(1024, 3072, 28, 16, 8, 128, 151_936, qk_norm=True),
        "1.7B": Shape(2048, 6144, 28, 16, 8, 128, 151_936, qk_norm=True),
    }
)
"""SmolLM2-135M (arXiv 2502.02737), Qwen3-0.6B and Qwen3-1.7B (arXiv 2505.09388); tiny is for tries."""
