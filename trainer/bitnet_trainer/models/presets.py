"""The presets: sizes of BitNetLlama that a run can train from scratch."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from bitnet_trainer.errors import BadInput
from bitnet_trainer.models.bitnet_llama import BitNetLlama, BitNetLlamaConfig


@dataclass(frozen=True)
class Shape:
    """What a preset settles. The rest is BitNetLlamaConfig's: squared-ReLU gates, tied embeddings."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_heads: int
    rope_theta: float = 100_000.0
    positions: int = 8192
    """Longest sequence that the source was made for."""
    rms_norm_eps: float = 1e-5


PRESETS: Mapping[str, Shape] = MappingProxyType(
    {
        "BitNetLlama-1M": Shape(128, 384, layers=4, heads=4, key_heads=2),
        "BitNetLlama-135M": Shape(576, 1536, layers=30, heads=9, key_heads=3),
        "BitNetLlama-350M": Shape(960, 2560, layers=32, heads=15, key_heads=5),
        "BitNetLlama-0.6B": Shape(
            1024, 4096, layers=28, heads=16, key_heads=8, rope_theta=1e6, positions=40_960, rms_norm_eps=1e-6
        ),
        "BitNetLlama-1.7B": Shape(
            2048, 6144, layers=28, heads=16, key_heads=8, rope_theta=1e6, positions=40_960, rms_norm_eps=1e-6
        ),
    }
)
"""By the names of `bitnet_crds.spec.Preset`.

Parameters at the vocabulary of the model whose shape it is, all of them and less the embeddings:

| Preset | Shape of | Vocabulary | Parameters | less embeddings |
|---|---|---|---|---|
| BitNetLlama-1M | none; for tests | 2,048 | 1,051,776 | 789,632 |
| BitNetLlama-135M | SmolLM2-135M, arXiv 2502.02737 | 49,152 | 134,578,368 | 106,266,816 |
| BitNetLlama-350M | SmolLM2-360M, arXiv 2502.02737 | 49,152 | 361,933,760 | 314,747,840 |
| BitNetLlama-0.6B | Qwen3-0.6B, arXiv 2505.09388 | 151,936 | 596,186,112 | 440,603,648 |
| BitNetLlama-1.7B | Qwen3-1.7B, arXiv 2505.09388 | 151,936 | 1,720,797,184 | 1,409,632,256 |

SubLN's gains are what a preset has beside its source's parameters; Qwen3's norms of queries and keys it has
not. Qwen3-0.6B's query heads have 2048 channels together, twice its hidden size, which stock BitNet does not
know and so could not be exported to: here they have 1024, and the parameters so saved widen the MLP from 3072
to 4096.
"""


def build_preset(preset: str, vocabulary: int) -> BitNetLlama:
    """A BitNetLlama with random weights, in float32 on the CPU, in evaluation mode.

    Embeddings and linears are drawn from a normal distribution of standard deviation 0.02, output projections
    (o_proj, down_proj) of 0.02 / sqrt(2 * layers), as in GPT-2; norms are 1. torch's generator is drawn from:
    the weights are the same after the same torch.manual_seed.

    Args:
        preset: a name of `bitnet_crds.spec.Preset`.
        vocabulary: V, tokens of the tokenizer.

    Raises:
        BadInput: there is no such preset.
    """
    if preset not in PRESETS:
        raise BadInput(f"there is no preset {preset!r}; write one of {', '.join(PRESETS)}")
    shape = PRESETS[preset]
    model = BitNetLlama(
        BitNetLlamaConfig(
            vocab_size=vocabulary,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_heads,
            rope_theta=shape.rope_theta,
            max_position_embeddings=shape.positions,
            rms_norm_eps=shape.rms_norm_eps,
        )
    )
    # The residual stream is a sum of two outputs a layer: so it is as wide at any depth.
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.mul_((2 * shape.layers) ** -0.5)
    model.train(False)
    return model
