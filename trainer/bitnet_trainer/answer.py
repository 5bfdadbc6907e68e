"""What a language model says of a batch, as objectives see it: hidden states, the head apart from them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Capture:
    """What a forward pass is to keep on its way, besides its end. Layers count from 0."""

    hidden_states: bool = False
    """Whether to keep what each layer puts out."""
    projections: frozenset[int] = frozenset()
    """Layers whose queries, keys and values are kept."""

    def __or__(self, other: "Capture") -> "Capture":
        return Capture(self.hidden_states or other.hidden_states, self.projections | other.projections)


class Projections(NamedTuple):
    """Queries, keys and values of one layer as its projections put them out: before RoPE and QK-norm."""

    queries: Tensor
    """(B, S, heads * head size)."""
    keys: Tensor
    """(B, S, key heads * head size)."""
    values: Tensor
    """(B, S, key heads * head size)."""


class Answer(NamedTuple):
    """One forward pass. A tuple, so that what wraps the model (FSDP2) finds the tensors in it."""

    hidden: Tensor
    """(B, S, D): what the head reads."""
    head: Callable[[Tensor], Tensor]
    """(..., D) -> logits (..., V), or (..., labels) for a classifier. Applied to a few tokens at a time, it
    spares holding logits (B, S, V)."""
    hidden_states: tuple[Tensor, ...] = ()
    """(B, S, D) after each layer, where they were asked for."""
    projections: Mapping[int, Projections] = {}
    """By layer, for those that were asked for."""
