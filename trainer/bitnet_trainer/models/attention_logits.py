"""The largest attention logits of a model in training, taken where queries and keys are final."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bitnet_trainer.errors import BadInput

_RECORDED = "sdpa_with_largest_logits"
_MOST_LOGITS = 2**24
"""Logits held at a time: 64 MiB in float32."""


class LargestLogits:
    """Remembers the largest logit of each layer's query heads, over every forward pass in training mode.

    Logits are `scale * q . k`, after RoPE and QK-norm, where a token that is no padding may look. They are
    computed beside the attention itself, some rows at a time, and stay on the device. In evaluation nothing
    is computed.
    """

    values: Tensor
    """(L, H) float32; -inf where there was none."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Makes `model` record, on the device where it is now.

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
        self.values = torch.full(
            (len(attentions), model.config.num_attention_heads), -torch.inf, device=model.device
        )
        self._real: Tensor | None = None
        base.register_forward_pre_hook(self._see_padding, with_kwargs=True)
        for number, attention in enumerate(attentions):
            attention.largest_logits = LayerLogits(self, number)

    def forget(self) -> None:
        """Begins anew."""
        self.values.fill_(-torch.inf)

    def record(
        self, layer: int, queries: Tensor, keys: Tensor, mask: Tensor | None, scale: float | None
    ) -> None:
        """Takes one layer's queries and keys in, as `largest_logits` has them."""
        found = largest_logits(queries.detach(), keys.detach(), mask, scale, self._real)
        torch.maximum(self.values[layer], found, out=self.values[layer])

    def _see_padding(self, _base: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask = named.get("attention_mask", inputs[1] if len(inputs) > 1 else None)
        self._real = mask.bool() if mask is not None and mask.ndim == 2 else None


class LayerLogits:
    """One layer's part in them: what an attention module holds under the name `largest_logits`."""

    def __init__(self, whole: LargestLogits, layer: int) -> None:
        self._whole, self._layer = whole, layer

    def __call__(
        self, queries: Tensor, keys: Tensor, mask: Tensor | None, scale: float | None = None
    ) -> None:
        """Takes in what attention is about to be computed of; shapes as in `largest_logits`."""
        self._whole.record(self._layer, queries, keys, mask, scale)


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
