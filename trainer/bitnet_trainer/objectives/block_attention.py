"""Objective `blockAttention`: attention relations within blocks of tokens, at a cost of S * block."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from bitnet_trainer.answer import Projections
from bitnet_trainer.objectives.attention_relations import AttentionRelationsObjective, attention_relations
from bitnet_trainer.objectives.token_loss import CHUNK_ELEMENTS, TokenLoss


def block_attention(
    student: Projections,
    teacher: Projections,
    tokens: Tensor,
    relation_heads: int,
    block_size: int,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> TokenLoss:
    """`attention_relations`, where a token relates to the tokens of its own block alone.

    A row's blocks begin at its first position and have `block_size` of them, the last perhaps fewer. The
    other arguments and what is returned are those of `attention_relations`.
    """
    size = min(block_size, tokens.shape[1])

    def blocks(projections: Projections) -> Projections:
        return Projections(*(_blocks(projection, size) for projection in projections))

    # What fills up the last block counts as padding.
    own_tokens = _blocks(tokens[..., None], size)[..., 0]
    return attention_relations(blocks(student), blocks(teacher), own_tokens, relation_heads, chunk_elements)


def _blocks(x: Tensor, size: int) -> Tensor:
    """(B, S, width) -> (B * blocks, size, width), the last block of a row filled up with 0."""
    return F.pad(x, (0, 0, 0, -x.shape[1] % size)).reshape(-1, size, x.shape[2])


@dataclass(frozen=True)
class BlockAttentionObjective(AttentionRelationsObjective):
    """`blockAttention` of a run."""

    name: ClassVar[str] = "blockAttention"

    block_size: int
    """Tokens in a block."""

    def _loss(self, student: Projections, teacher: Projections, tokens: Tensor) -> TokenLoss:
        return block_attention(student, teacher, tokens, self._heads, self.block_size)
