"""The largest attention logits of a model in training, taken where queries and keys are final."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bitnet_trainer.documents import dense_mask, first_keys
from bitnet_trainer.errors import BadInput
from bitnet_trainer.triton_kernels import has_kernels

_RECORDED = "sdpa_with_largest_logits"
_MOST_LOGITS = 2**24
"""Logits held at a time: 64 MiB in float32."""
_ALIGNED = 4
"""Numbers in the 16 bytes at which a compiled layer wants a tensor to begin, lest it copies it."""


class LargestLogits:
    """Remembers the largest logit of each layer's query heads, over every forward pass in training mode.

    Logits are `scale * q . k`, after RoPE and QK-norm, where a token that is no padding may look. They stay
    on the device. In evaluation nothing is computed.

    On CUDA, where attention has no mask, its own log-sum-exp is made use of: for a query that sees n keys
    `max <= lse <= max + log(n)`. A tile of queries whose log-sum-exps are all at most the threshold has no
    logit above it either, and the largest of them stands for its logits; only the other tiles' logits are
    computed again, exactly. So a head is found above the threshold exactly if it is, with its exact largest
    logit, and is clipped as on the CPU; of a head at or below it, it is known that it is, and its value may
    be up to log(n) too large. To compute all logits again would take 1.9e12 operations a step of Qwen3-0.6B's
    shape, 8 x 2,048 tokens; the log-sum-exp alone would clip heads too much, by as much as log(n).

    Elsewhere all logits are computed, some rows at a time.
    """

    values: Tensor
    """(L, H) float32; -inf where there was none."""

    def __init__(self, model: PreTrainedModel, threshold: float = -torch.inf) -> None:
        """Makes `model` record, on the device where it is now; values above `threshold` are exact.

        Raises BadInput where its attention is more than scaled dot products, so that it cannot be seen into.
        """
        base: Any = model.base_model
        attentions = [layer.self_attn for layer in base.layers]
        if not hasattr(attentions[0], "largest_logits"):
            if model.config._attn_implementation not in ("sdpa", _RECORDED):
                raise BadInput(
                    f"MuonClip bounds attention logits, and those of {type(model).__name__} cannot be had: "
                    "its attention is not plain scaled dot products. Write `name: AdamW` in spec.optimizer."
                )
            model.set_attn_implementation(_RECORDED)
        heads = model.config.num_attention_heads
        aligned = -(-heads // _ALIGNED) * _ALIGNED
        self.values = torch.full((len(attentions), aligned), -torch.inf, device=model.device)[:, :heads]
        self.threshold, self.kernel = threshold, has_kernels(model.device)
        self._real: Tensor | None = None
        base.register_forward_pre_hook(self._see_padding, with_kwargs=True)
        for attention, values in zip(attentions, self.values, strict=True):
            attention.largest_logits = LayerLogits(self, values)

    def forget(self) -> None:
        """Begins anew."""
        self.values.fill_(-torch.inf)

    def _see_padding(self, _base: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask = named.get("attention_mask", inputs[1] if len(inputs) > 1 else None)
        self._real = mask.bool() if mask is not None and mask.ndim == 2 else None


class LayerLogits:
    """One layer's part in them: what an attention module holds under the name `largest_logits`.

    It holds its own view of the values, and nothing that differs between layers but that: layers that are
    compiled one by one then share what one of them was compiled to.
    """

    def __init__(self, whole: LargestLogits, values: Tensor) -> None:
        self._whole, self._values = whole, values

    @torch.no_grad()
    def __call__(
        self, queries: Tensor, keys: Tensor, mask: Tensor | None, scale: float | None = None
    ) -> None:
        """Takes in what attention is about to be computed of; shapes as in `largest_logits`."""
        self._take(largest_logits(queries, keys, mask, scale, self._whole._real))

    @torch.no_grad()
    def causal(
        self,
        queries: Tensor,
        keys: Tensor,
        scale: float | None,
        cu_seqlens: Tensor | None,
        lse: Tensor | None,
    ) -> None:
        """Takes in what attention without a mask was computed of.

        Args:
            queries: (B, H, S, d).
            keys: (B, Hk, S, d).
            scale: none: 1 / sqrt(d).
            cu_seqlens: (N + 1,) int32 where rows hold documents.
            lse: (B, H, S) float32, the logarithm of the sum of exp(logit), where it is known.
        """
        batch, _, length, channels = queries.shape
        if not self._whole.kernel:
            self(queries, keys, None if cu_seqlens is None else dense_mask(cu_seqlens, batch, length), scale)
            return
        maxima = tile_maxima(
            queries,
            keys,
            None if cu_seqlens is None else first_keys(cu_seqlens, batch, length),
            lse,
            channels**-0.5 if scale is None else scale,
            self._whole.threshold,
        )
        self._take(maxima.amax(dim=(0, 2)))

    def _take(self, found: Tensor) -> None:
        self._values.copy_(torch.maximum(self._values, found))


@torch.library.custom_op("bitnet_trainer::tile_maxima", mutates_args=())
def tile_maxima(
    queries: Tensor,
    keys: Tensor,
    begins: Tensor | None,
    lse: Tensor | None,
    scale: float,
    threshold: float,
) -> Tensor:
    """The largest logit of each tile of queries; of a tile without an lse above `threshold`, its largest lse.

    By a Triton kernel, on CUDA or under Triton's interpreter; one operation to a compiler.

    Args:
        queries: (B, H, S, d).
        keys: (B, Hk, S, d), of the same type.
        begins: (B, S) int32, the first key that a query sees; none: all before it.
        lse: (B, H, S) float32; none: every tile's logits are computed.
        scale: above 0.
        threshold: a logit.

    Returns:
        (B, H, tiles) float32.
    """
    # Imported where it is used: Triton takes long to start, and need not be installed.
    found: Tensor = import_module("bitnet_trainer.models.kernels.largest_logits").tile_maxima(
        queries, keys, begins, lse, scale, threshold
    )
    return found


@tile_maxima.register_fake
def _(
    queries: Tensor, keys: Tensor, begins: Tensor | None, lse: Tensor | None, scale: float, threshold: float
) -> Tensor:
    del keys, begins, lse, scale, threshold
    batch, heads, length, _ = queries.shape
    tiles = import_module("bitnet_trainer.models.kernels.largest_logits").tiles_of(length)
    return queries.new_empty(batch, heads, tiles, dtype=torch.float32)


@torch.no_grad()
def largest_logits(
    queries: Tensor,
    keys: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    real: Tensor | None = None,
) -> Tensor:
    """The largest `scale * q . k` of each query head.

    Args:
        queries: (B, H, S, d).
        keys: (B, Hk, S, d); key head i serves the query heads from i * H / Hk on.
        mask: (B or 1, 1, S, S) bool, True where a query (row) may look; none: causal.
        scale: above 0; none: 1 / sqrt(d).
        real: (B, S) bool, False for padding, whose rows are left out.

    Returns:
        (H,) float32; -inf for a head that may look nowhere.
    """
    batch, heads, length, channels = queries.shape
    key_heads = keys.shape[1]
    largest = torch.full((heads,), -torch.inf, device=queries.device)
    rows = max(1, _MOST_LOGITS // (batch * heads * length))
    for first in range(0, length, rows):
        some = queries[:, :, first : first + rows]
        end = first + some.shape[2]
        # Heads that share a key head are rows of one product: (B, Hk, H/Hk * rows, d) x (B, Hk, d, S).
        grouped = some.reshape(batch, key_heads, -1, channels)
        logits = (grouped @ keys.mT).view(batch, heads, end - first, length)
        visible = _causal(first, end, length, queries.device) if mask is None else mask[:, :, first:end]
        if real is not None:
            visible = visible & real[:, None, first:end, None]
        seen = logits.masked_fill(~visible, -torch.inf).amax(dim=(0, 2, 3))
        largest = torch.maximum(largest, seen.float())
    return largest * (channels**-0.5 if scale is None else scale)


def _causal(first: int, end: int, length: int, device: torch.device) -> Tensor:
    """(1, 1, end - first, length) bool: rows `first` to `end` of a causal mask."""
    places = torch.arange(length, device=device)
    return (places <= places[first:end, None])[None, None]


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' own attention, seen into where its module is told to and in training."""
    if module.training and (logits := getattr(module, "largest_logits", None)) is not None:
        logits(query, key, attention_mask, scaling)
    attended: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **others
    )
    return attended


AttentionInterface.register(_RECORDED, _attention)
AttentionMaskInterface.register(_RECORDED, sdpa_mask)
