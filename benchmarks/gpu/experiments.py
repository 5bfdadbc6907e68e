"""What may make a step faster, ready to be measured beside it: cases of step.py that the trainer has not."""

from types import MappingProxyType, MethodType
from typing import Any

import torch
from cases import Trained, Workload, ours
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.precision import product
from bitnet_trainer.quantization.int8_training import Int8Codes, dequantized, int8_codes, token_codes
from bitnet_trainer.quantization.kernels.int8_product import int8_product

DTYPE = torch.bfloat16
"""Of what products give."""

# --- queries, keys and values as one function of codes, norms and rotary positions included


class _Heads(torch.autograd.Function):
    """(T, in) -> queries (T, H, d), keys and values (T, Hk, d), as attention takes them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        q_weight: Tensor,
        k_weight: Tensor,
        v_weight: Tensor,
        q_gain: Tensor | None,
        k_gain: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        length: int,
        epsilon: float,
        channels: int,
        *kept: Int8Codes | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        import heads_kernels  # Triton, which is not everywhere

        tokens, codes_per_unit = token_codes(x)
        weights = q_weight, k_weight, v_weight
        codes = [
            int8_codes(weight) if known is None else known
            for weight, known in zip(weights, kept, strict=True)
        ]
        q, k, v = (
            int8_product(tokens, codes_per_unit, *each, DTYPE).view(len(x), -1, channels) for each in codes
        )
        ctx.save_for_backward(
            tokens, codes_per_unit, q, k, q_gain, k_gain, cos, sin, *(part for each in codes for part in each)
        )
        ctx.length, ctx.epsilon, ctx.of_x = length, epsilon, x.dtype
        turn = (cos, sin), length, epsilon
        return heads_kernels.turned(q, q_gain, *turn), heads_kernels.turned(k, k_gain, *turn), v

    @staticmethod
    def backward(ctx: Any, to_q: Tensor, to_k: Tensor, to_v: Tensor) -> tuple[Tensor | None, ...]:
        import heads_kernels

        tokens, codes_per_unit, q, k, q_gain, k_gain, cos, sin, *codes = ctx.saved_tensors
        before, rounded, per_unit, of_gains = heads_kernels.turned_back(
            (to_q.contiguous(), to_k.contiguous(), to_v.contiguous()),
            (q, k),
            (q_gain, k_gain),
            (cos, sin),
            tuple(codes[1::2]),
            ctx.length,
            ctx.epsilon,
        )
        all_codes = torch.cat([each.T for each in codes[::2]], dim=1)
        one = torch.ones_like(codes[1])
        to_x = int8_product(rounded, per_unit, all_codes, one, before.dtype).to(ctx.of_x)
        inputs = dequantized(tokens, codes_per_unit, before.dtype)
        widths = [len(each) for each in codes[::2]]
        to_weights = [product(part.T, inputs, torch.float32) for part in before.split(widths, dim=1)]
        to_gains = (None, None) if q_gain is None else of_gains.to(q_gain.dtype).unbind()
        return to_x, *to_weights, *to_gains, *(None,) * 8


def heads_together(model: LanguageModel) -> None:
    """Has attention of Llama's and Qwen3's kind compute so, where its projections are products of codes."""
    for layer in model.decoder_layers:
        layer.self_attn.forward = MethodType(_attention, layer.self_attn)


def _attention(
    attention: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    linears = attention.q_proj, attention.k_proj, attention.v_proj
    if not all(each.is_int8_linear(hidden_states) for each in linears):
        given = hidden_states, position_embeddings, attention_mask
        computed: tuple[Tensor, None] = type(attention).forward(attention, *given, **others)
        return computed
    batch, length, _ = hidden_states.shape
    norms = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    q, k, v = _Heads.apply(
        hidden_states.flatten(0, 1),
        *(each.weight for each in linears),
        *(None if norm is None else norm.weight for norm in norms),
        *position_embeddings,
        length,
        0.0 if norms[0] is None else norms[0].variance_epsilon,
        attention.head_dim,
        *(each.kept for each in linears),
    )
    shaped = [each.view(batch, length, -1, attention.head_dim).transpose(1, 2) for each in (q, k, v)]
    interface = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, None)
    out, _ = interface(attention, *shaped, attention_mask, scaling=attention.scaling, dropout=0.0, **others)
    return attention.o_proj(out.reshape(batch, length, -1).contiguous()), None


def heads(work: Workload) -> Trained:
    """Ours with it."""
    return ours(work, prepare=heads_together)


EXPERIMENTS = MappingProxyType({"experiment: ours, heads together": heads})
"""Cases of step.py."""
