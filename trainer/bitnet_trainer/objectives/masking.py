"""Which tokens are masked: a function of seed and sequence alone, so that ranks and resumes agree on it."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bitnet_trainer.batch import IGNORED, Rows, SequenceId


@dataclass(frozen=True)
class Masking:
    """Masks rows for masked diffusion. Equal ones mask alike."""

    probability: float
    """With which a token is masked."""
    mask_token: int
    """The id of the token that stands for a masked one."""
    mode: Literal["Independent", "Complementary"]
    """Complementary: each row comes twice, the second time with the other tokens masked."""
    seed: int

    def __call__(self, rows: Rows) -> Rows:
        """New rows (B, S), or (2B, S) in Complementary mode (all once, then all again), with masked input.

        Rows are on the CPU. Labels are the tokens that were masked, IGNORED elsewhere; they are not shifted:
        the token at i is to be predicted from the logits at i - 1 (token shift). The first and last token of
        a row, padding, and tokens that are IGNORED already are never masked, so a row may have no masked
        token at all.

        Raises:
            ValueError: some row does not say which sequence it is.
        """
        if len(rows.ids) != len(rows):
            raise ValueError(
                f"{len(rows)} rows with {len(rows.ids)} ids cannot be masked, since a mask goes by the "
                "sequence; give Rows an id for each row"
            )
        eligible = _inner_tokens(rows)
        mask = (self._drawn(rows) < self.probability) & eligible
        masks = [mask] if self.mode == "Independent" else [mask, ~mask & eligible]
        return Rows(
            input_ids=torch.cat([rows.input_ids.masked_fill(mask, self.mask_token) for mask in masks]),
            labels=torch.cat([rows.labels.masked_fill(~mask, IGNORED) for mask in masks]),
            attention_mask=None if rows.attention_mask is None else rows.attention_mask.repeat(len(masks), 1),
            position_ids=None if rows.position_ids is None else rows.position_ids.repeat(len(masks), 1),
            ids=rows.ids * len(masks),
        )

    def _drawn(self, rows: Rows) -> Tensor:
        """(B, S) in [0, 1): a row's numbers depend on nothing but the seed and its sequence."""
        length = rows.input_ids.shape[1]
        return torch.stack([torch.rand(length, generator=_generator(self.seed, id_)) for id_ in rows.ids])


def _inner_tokens(rows: Rows) -> Tensor:
    """(B, S) bool: tokens that may be masked."""
    tokens = rows.tokens
    places = torch.arange(tokens.shape[1])
    last = torch.where(tokens, places, -1).amax(dim=1, keepdim=True)
    first = torch.where(tokens, places, tokens.shape[1]).amin(dim=1, keepdim=True)
    return tokens & (places > first) & (places < last) & (rows.labels != IGNORED)


def _generator(seed: int, id_: SequenceId) -> torch.Generator:
    key = f"masked diffusion {seed}/{id_.source}/{id_.epoch}/{id_.index}".encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
