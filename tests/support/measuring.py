"""Perplexity as tests ask for it: of a model on sequences, in one call."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from bitnet_trainer.batch import Rows
from bitnet_trainer.evaluate import Perplexity, negative_log_likelihood, perplexity_of


def perplexity(model: Callable[..., Any], sequences: Tensor | Rows, batch_size: int = 8) -> Perplexity:
    """`perplexity_of` the model's `negative_log_likelihood`; arguments and errors as theirs."""
    return perplexity_of(*negative_log_likelihood(model, sequences, batch_size))
