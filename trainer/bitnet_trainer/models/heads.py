"""Queries, keys and values of a decoder's attention, at lambda 1 one function of codes."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma.modeling_gemma import GemmaAttention
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.heads_training import MOST_VALUES, Turns, projected_heads
from bitnet_trainer.quantization.int8_training import Int8Codes

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries (B, H, S, d), keys (B, Hk, S, d) and values (B, Hk, S, d)."""

_CACHES = ("cache", "past_key_values")
"""What transformers calls keys and values of earlier tokens, and called them before 5.24."""


def heads_of_codes(attention: Any, x: Tensor, turns: Turns) -> Heads | None:
    """What attention takes of x: `projected_heads`, where its linears are products of int8 codes and nothing
    else, nobody looks into them, and a kernel can hold a token; else None.

    Args:
        attention: has q_proj, k_proj, v_proj and head_dim, and q_norm and k_norm of Qwen3's kind, or none.
        x: (B, S, in).
        turns: of head_dim channels.
    """
    linears = attention.q_proj, attention.k_proj, attention.v_proj
    norms = [norm for name in ("q_norm", "k_norm") if (norm := getattr(attention, name, None)) is not None]
    most = MOST_VALUES // 2 if norms else MOST_VALUES
    if not (_is_held(attention, most) and all(_is_int8_linear(each, x) for each in linears)):
        return None
    if any(_is_looked_into(each) for each in (*linears, *norms)):
        return None
    gains = None if not norms else (norms[0].weight, norms[1].weight)
    epsilon = norms[0].variance_epsilon if norms else 0.0
    kept = cast("list[Int8Codes | None]", [each.kept for each in linears])  # no others are int8's
    weights = [each.weight for each in linears]
    queries, keys, values = projected_heads(x, weights, gains, turns, epsilon, torch.bfloat16, kept)
    return queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)


def _is_int8_linear(linear: nn.Module, x: Tensor) -> bool:
    return isinstance(linear, BitLinear) and linear.is_int8_linear(x)


def _is_looked_into(module: nn.Module) -> bool:
    """Whether a hook waits for what it computes (`Capture.projections`)."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _is_held(attention: Any, most: int) -> bool:
    """Whether a program of a kernel can hold all heads of a token, in at most so many values."""
    channels = attention.head_dim
    width = attention.q_proj.out_features + 2 * attention.k_proj.out_features
    heads = 1 << (width // channels - 1).bit_length()
    return bool(channels & (channels - 1) == 0 and heads * channels <= most)


class _OfCodes(nn.Module):
    """Before a class of transformers' attention: what that computes, of heads that are one function of codes
    where they can be."""

    config: Any
    o_proj: nn.Linear
    scaling: float
    attention_dropout: Any

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As transformers' has it."""
        functions: Any = ALL_ATTENTION_FUNCTIONS
        attend = functions.get_interface(self.config._attn_implementation, None)  # none: a module's own
        heads = None
        if attend is not None and all(others.get(name) is None for name in _CACHES):
            # The other half is the same again.
            cos, sin = (each[..., : each.shape[-1] // 2] for each in position_embeddings)
            heads = heads_of_codes(self, hidden_states, (cos, sin))
        if heads is None:
            found: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states, position_embeddings, attention_mask, **others
            )
            return found
        others = {name: value for name, value in others.items() if name not in _CACHES}
        if hasattr(self, "sliding_window"):
            others["sliding_window"] = self.sliding_window
        dropout = self.attention_dropout if self.training else 0.0
        out, weights = attend(self, *heads, attention_mask, dropout=dropout, scaling=self.scaling, **others)
        return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights


class LlamaAttentionOfCodes(_OfCodes, LlamaAttention):
    """Llama's."""


class Qwen3AttentionOfCodes(_OfCodes, Qwen3Attention):
    """Qwen3's, with norms by head."""


class GemmaAttentionOfCodes(_OfCodes, GemmaAttention):
    """Gemma's, of the first generation."""


_OF_CODES: Mapping[type, type] = MappingProxyType(
    {
        LlamaAttention: LlamaAttentionOfCodes,
        Qwen3Attention: Qwen3AttentionOfCodes,
        GemmaAttention: GemmaAttentionOfCodes,
    }
)


def take_heads_together(attention: nn.Module) -> None:
    """Makes attention of a known class one of codes, in place: others hold it, and set what it reads, such as
    `largest_logits`. One of another class, such as of heads whose norms add one to their gains, stays."""
    attention.__class__ = _OF_CODES.get(type(attention), type(attention))
