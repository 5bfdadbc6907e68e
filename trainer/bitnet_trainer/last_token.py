"""Where a padded sequence ends: what a classifier reads of it."""

import torch
from torch import Tensor


def at_last_token(hidden: Tensor, tokens: Tensor) -> Tensor:
    """What stands at each row's last token, wherever its padding is.

    Args:
        hidden: (B, S, D).
        tokens: (B, S) bool: where there is a token, and not padding.

    Returns:
        (B, D); of a row that is all padding its first position.
    """
    places = torch.arange(tokens.shape[1], device=tokens.device)
    last = (places * tokens).amax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
