"""Causal attention without a dense mask: of whole rows, or of documents that share a row."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn
from transformers import AttentionInterface, PreTrainedModel

from bitnet_trainer.documents import dense_mask
from bitnet_trainer.models.attention_backends import BACKENDS, Attended

_IMPLEMENTATION = "causal_without_mask"
"""Its name in transformers' AttentionInterface. AttentionMaskInterface has none of that name: transformers'
decoders then make no mask at all, nor look whether position_ids hold several documents, for which the host
would wait."""
_ARCHITECTURES = frozenset({"llama", "qwen2", "qwen3", "gemma", "gemma3_text", "bitnet_llama"})
"""Model types whose layers hand on what they are called with, and whose attention is scaled products: Gemma 2
caps its logits."""
_REPLACED = frozenset({"sdpa", "sdpa_with_largest_logits"})
"""Implementations that compute the same from a dense mask."""
_LARGEST_HEAD = 256
_SHORT = (torch.bfloat16, torch.float16)
_varlen_attn: Any = varlen_attn
_GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""Before torch 2.12 it was not asked for, and always there."""


def is_maskless(model: PreTrainedModel, input_ids: Tensor, cu_seqlens: Tensor | None) -> bool:
    """Whether `unmasked` may be put around a pass of a model over rows without padding.

    Whole rows (no `cu_seqlens`) on the CPU are not for it, nor what is computed in float32 on CUDA: kernels
    that know of documents have no float32, and the others choose for themselves. Nor is a model of which a
    layer sees less than all tokens before in rows of this length, or drops some at random.
    """
    base: Any = model.base_model
    config, length = base.config, input_ids.shape[1]
    if input_ids.device.type == "cuda":
        if _dtype(input_ids.device, model.dtype) not in _SHORT:
            return False
        if cu_seqlens is not None and not _has_flash(input_ids.device):
            return False
    elif cu_seqlens is None:
        return False
    head_dim = base.layers[0].self_attn.head_dim
    windowed = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return (
        config.model_type in _ARCHITECTURES
        and config._attn_implementation in _REPLACED
        and not getattr(config, "attention_dropout", 0.0)
        and not getattr(config, "use_bidirectional_attention", False)
        and not (windowed and length > config.sliding_window)
        and head_dim <= _LARGEST_HEAD
        and head_dim % 8 == 0
    )


@contextmanager
def unmasked(model: PreTrainedModel) -> Iterator[None]:
    """Inside, layers of transformers' decoders attend by `attend`, without a mask; padding would be seen.

    Documents reach it as `cu_seqlens`, which the decoder is called with and hands on.
    """
    base: Any = model.base_model
    config = base.config
    before = config._attn_implementation
    config._attn_implementation = _IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before


def prefer(model: PreTrainedModel, backend: str | None) -> None:
    """Whole rows of this model take that one of BACKENDS; with none, torch's own choice."""
    base: Any = model.base_model
    for layer in base.layers:
        layer.self_attn.attention_backend = backend


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Causal attention, in autocast's dtype where there is one.

    On CUDA whole rows take the backend that the module holds under the name `attention_backend`, one of
    BACKENDS, or torch's own choice; documents take torch's variable-length attention (flash). Elsewhere both
    have torch's scaled products, documents with a dense mask, which gives the same.

    Args:
        module: of attention; in training, the largest logits are told to its `largest_logits`.
        query: (B, H, S, d).
        key: (B, Hk, S, d); key head i serves the query heads from i * H / Hk on.
        value: likewise.
        scale: of the logits; none: 1 / sqrt(d).
        cu_seqlens: (N + 1,) int32, as `cumulative_lengths` gives them; none: whole rows.

    Returns:
        (B, S, H, d).
    """
    dtype = _dtype(query.device, value.dtype)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    batch, heads, length, _ = query.shape
    on_cuda = query.device.type == "cuda"
    backend = getattr(module, "attention_backend", None)
    lse = None
    if on_cuda and cu_seqlens is not None:
        out, lse = _packed(query, key, value, scale, cu_seqlens)
    elif on_cuda and backend is not None and dtype in _SHORT:
        out, lse = BACKENDS[backend](query, key, value, scale)
        out = out.transpose(1, 2)
    else:
        mask = None if cu_seqlens is None else dense_mask(cu_seqlens, batch, length)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=heads != key.shape[1],
        ).transpose(1, 2)
    if module.training and (logits := getattr(module, "largest_logits", None)) is not None:
        logits.causal(query, key, scale, cu_seqlens, lse)
    return out


def _packed(query: Tensor, key: Tensor, value: Tensor, scale: float | None, cu_seqlens: Tensor) -> Attended:
    """What comes out is (B, S, H, d) already."""
    batch, heads, length, channels = query.shape
    query, key, value = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))  # (B * S, H, d)
    # S is the most that a document may have: how many the longest of a micro batch has would be another
    # number each time, and another compiled layer.
    out, lse = _varlen_attn(
        query,
        key,
        value,
        cu_seqlens,
        cu_seqlens,
        length,
        length,
        scale=scale,
        window_size=(-1, 0),
        return_aux=AuxRequest(lse=True),
        **_GROUPED,
    )
    return Attended(
        out.view(batch, length, heads, channels), lse.reshape(heads, batch, length).transpose(0, 1)
    )


@cache
def _has_flash(device: torch.device) -> bool:
    """Whether there is a kernel of variable length: not on cards before Ampere."""
    built = torch.backends.cuda.is_flash_attention_available()
    return built and torch.cuda.get_device_capability(device) >= (8, 0)


def _dtype(device: torch.device, otherwise: torch.dtype) -> torch.dtype:
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return otherwise


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,  # noqa: ARG001
    scaling: float | None = None,
    cu_seqlens: Tensor | None = None,
    **_others: Any,
) -> tuple[Tensor, None]:
    """In the form that transformers' layers call it."""
    return attend(module, query, key, value, scaling, cu_seqlens), None


AttentionInterface.register(_IMPLEMENTATION, _attention)
