"""Which tokens are masked: a function of seed and sequence alone, so that ranks and resumes agree on it."""

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import torch

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
        """Rows (B, S), or (2B, S) in Complementary mode, on the CPU, with masked input.

        Labels are the tokens that were masked, IGNORED elsewhere; they are not shifted: the token at i is to
        be predicted from the logits at i - 1 (token shift). The first and last token of a row, padding, and
        tokens that are IGNORED already are never masked, so a row may have no masked token at all.
        """
        eligible = _inner_tokens(rows)
        drawn = torch.stack(
            [torch.rand(rows.input_ids.shape[1], generator=_generator(self.seed, id_)) for id_ in rows.ids]
        )
        mask = (drawn < self.probability) & eligible
        masked = self._masked(rows, mask)
        if self.mode == "Independent":
            return masked
        other = self._masked(rows, ~mask & eligible)
        both = torch.cat
        return replace(
            masked,
            input_ids=both((masked.input_ids, other.input_ids)),
            labels=both((masked.labels, other.labels)),
            attention_mask=None
            if rows.attention_mask is None
            else both((rows.attention_mask, rows.attention_mask)),
            classes=None,
            ids=rows.ids + rows.ids,
        )

    def _masked(self, rows: Rows, mask: torch.Tensor) -> Rows:
        return replace(
            rows,
            input_ids=rows.input_ids.masked_fill(mask, self.mask_token),
            labels=rows.labels.masked_fill(~mask, IGNORED),
        )


def _inner_tokens(rows: Rows) -> torch.Tensor:
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
