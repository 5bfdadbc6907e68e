"""QK-clip: keeps attention logits in bounds by scaling what queries and keys are made with, head by head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from bitnet_trainer.optim.shards import cut, own_part


class Maxima(Protocol):
    """Where the largest logits come from."""

    values: Tensor
    """(L, H): the largest logit of each layer's query heads, as this rank saw them; -inf where none was. At
    or below the threshold an upper bound, itself not above the threshold, will do."""

    def forget(self) -> None:
        """Begins anew."""


@dataclass(frozen=True)
class AttentionHeads:
    """What one layer's queries and keys are made with. H query heads, and Hk key heads that H / Hk share."""

    queries: tuple[Tensor, ...]
    """Weight and, where there is one, bias of the projection, a head's rows after another's; or, with
    QK-norm, the norm's gain alone, which all heads share."""
    keys: tuple[Tensor, ...]
    """The same of the keys."""
    key_heads: int
    normed: bool = False
    """Whether queries and keys are normed after their projections, which takes out the projections' scale."""
    gain_offset: float = 0.0
    """What a norm adds to its gain: 1 in Gemma's."""


class QKClip:
    """Scales queries and keys after an update, wherever the largest logit of the step was above a threshold.

    For a head with `S_max > tau`: `Wq *= (tau / S_max)^alpha` and `Wk *= (tau / S_max)^(1 - alpha)`, biases
    alike. S_max is of the whole step, over all ranks, in the weights before the update. Source: QK-clip of
    arXiv 2507.20534, section 2.1.

    Heads that share a key head: the key takes the smallest factor of them and each query what is left of its
    own, so that every head's logits are scaled by exactly its own `tau / S_max`, and those below tau by 1.

    With QK-norm the logits do not depend on the projections' scale, so the norms' gains are scaled. A layer
    has one gain for all its heads: the layer's largest S_max decides, and its smaller heads shrink with it.

    A ternary matrix has one scale for all its rows, a mean over all heads. Where one head's rows shrink, that
    scale does too, and codes of other heads change; the clipped head's own become codes against a scale that
    is mostly the others'. Measured on 9 heads with normal weights, one of them scaled by 0.7: 1 code in 100
    changes in the others, whose outputs shrink to 0.97, and the clipped head's only to 0.81. What is left
    over the threshold is clipped in the steps that follow.
    """

    def __init__(
        self, layers: Sequence[AttentionHeads], maxima: Maxima, *, threshold: float, alpha: float
    ) -> None:
        """
        Args:
            layers: in the order of the maxima.
            maxima: filled by the model's forward passes.
            threshold: tau, above 0.
            alpha: how much of the factor the queries take, from 0 to 1.
        """
        self._layers, self._maxima = layers, maxima
        self._threshold, self._alpha = threshold, alpha
        self.figures = torch.zeros(2, dtype=torch.float64, device=maxima.values.device)
        """(2,) on the device, of the last step: the largest maximum, and how many heads were clipped."""

    def forget(self) -> None:
        """Begins a step."""
        self._maxima.forget()

    @torch.no_grad()
    def apply(self, skipped: Tensor | None = None) -> None:
        """Scales in place; every rank calls it. Nothing changes where `skipped`, 0-dim bool, is True."""
        largest = self._maxima.values.clone()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        factors = clip_factors(largest, self._threshold)
        if skipped is not None:
            factors = torch.where(skipped, 1.0, factors)
        self.figures = torch.stack((largest.amax(), (factors < 1).sum())).double()
        self._scale_gains(factors)
        self._scale_heads(factors)

    def _scale_gains(self, factors: Tensor) -> None:
        """Of layers with QK-norm, (L, H) factors; gains of one size are scaled together."""
        least = factors.amin(dim=1)
        queries, keys = (least**self._alpha).unbind(), (least ** (1 - self._alpha)).unbind()
        alike: dict[tuple[float, torch.Size], list[tuple[Tensor, Tensor]]] = {}
        for number, layer in enumerate(self._layers):
            if layer.normed:
                pairs = [(own_part(gain), queries[number]) for gain in layer.queries]
                pairs += [(own_part(gain), keys[number]) for gain in layer.keys]
                for own, factor in pairs:
                    alike.setdefault((layer.gain_offset, own.shape), []).append((own, factor))
        for (offset, _), found in alike.items():
            gains = [own for own, _ in found]
            scales = torch.stack([factor for _, factor in found])[:, None]
            # (gain + offset) * scale - offset, written so that a scale of 1 changes no bit.
            scaled = torch.stack(gains) * scales + offset * (scales - 1)
            torch._foreach_copy_(gains, list(scaled.unbind()))

    def _scale_heads(self, factors: Tensor) -> None:
        """Of layers without, (L, H) factors; what the rows are multiplied by is found for all together."""
        plain = [(number, layer) for number, layer in enumerate(self._layers) if not layer.normed]
        by_key_heads = {
            count: shared_out(factors, count, self._alpha)
            for count in {layer.key_heads for _, layer in plain}
        }
        rows: dict[tuple[int, int, int], Tensor] = {}
        for number, layer in plain:
            shared = by_key_heads[layer.key_heads]
            for of_keys, parameters in enumerate((layer.queries, layer.keys)):
                for parameter in parameters:
                    key = (layer.key_heads, of_keys, len(parameter))
                    if key not in rows:
                        each = len(parameter) // shared[of_keys].shape[1]
                        rows[key] = shared[of_keys].repeat_interleave(each, dim=1)
                    _scale_rows(parameter, rows[key][number])


def clip_factors(largest: Tensor, threshold: float) -> Tensor:
    """`threshold / S_max` where S_max is above the threshold; else, and where it is no number, 1.

    Any shape -> the same.
    """
    too_large = (largest > threshold) & largest.isfinite()
    return torch.where(too_large, threshold / largest, 1.0)


def shared_out(factors: Tensor, key_heads: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Factors of queries (..., H) and of keys (..., key_heads), whose products are `factors` (..., H), all
    above 0."""
    by_key = factors.reshape(*factors.shape[:-1], key_heads, -1)
    keys = by_key.amin(dim=-1) ** (1 - alpha)
    return (by_key / keys[..., None]).flatten(-2), keys


def _scale_rows(parameter: Tensor, factors: Tensor) -> None:
    # A rank's part may begin and end within a head.
    own, rows = own_part(parameter), cut(factors.to(parameter.dtype), parameter)
    own.mul_(rows.view(-1, *(1,) * (own.ndim - 1)))
