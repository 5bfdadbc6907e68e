"""Perplexity and accuracy on text held out from training."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitnet_trainer.batch import IGNORED, Rows
from bitnet_trainer.errors import BadInput
from bitnet_trainer.objectives.classification import labels_of
from bitnet_trainer.objectives.cross_entropy import cross_entropy


@dataclass(frozen=True)
class Perplexity:
    """How surprised a model is, a token, by text that it has not seen."""

    value: float
    """exp(mean negative log-likelihood of a token); infinite or NaN where the model's logits are."""
    tokens: int
    """How many tokens were predicted."""


def perplexity_of(total: float, tokens: int) -> Perplexity:
    """Perplexity from the summed negative log-likelihood (nats) and the count of tokens.

    Raises:
        BadInput: tokens is 0.
    """
    if tokens < 1:
        raise BadInput(
            "there is no token to measure perplexity on; hold out at least one sequence of two tokens"
        )
    mean = total / tokens
    # exp overflows a double above 709, which an untrained ternary model may well reach.
    return Perplexity(math.exp(mean) if not mean > 700 else math.inf, tokens)


@torch.no_grad()
def negative_log_likelihood(
    model: Callable[..., Any],
    sequences: Tensor | Rows,
    batch_size: int = 8,
    device: torch.device | None = None,
) -> tuple[float, int]:
    """`sum of -log p(token)` in nats over all sequences, and how many tokens; the first of each is not one.

    Ranks that hold a part of the sequences each can add both up; `perplexity_of` takes the sums. The model
    is in evaluation mode meanwhile and as it was afterwards. Run it under autocast where training does.

    Args:
        model: a causal LM like transformers'; its answer has `logits` (B, S, V).
        sequences: (N, S) int64 token ids, -100 nowhere; or rows without padding, of which those tokens count
            that are labels.
        batch_size: B, sequences in one forward pass; it changes memory, not the answer.
        device: where the model is; of its parameters if not given.
    """
    rows = sequences if isinstance(sequences, Rows) else Rows.of(sequences)
    device = device or _device_of(model, rows.input_ids)
    total, tokens = 0.0, 0
    with _evaluating(model):
        for begin in range(0, len(rows), batch_size):
            batch = rows[begin : begin + batch_size].to(device)
            answer = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
            loss = cross_entropy(answer.logits, batch.labels)
            total += loss.total.item()
            tokens += int(loss.tokens)
    return total, tokens


@torch.no_grad()
def count_correct(
    model: Callable[..., Any], rows: Rows, batch_size: int = 8, device: torch.device | None = None
) -> tuple[int, int]:
    """How many labelled rows a classifier gives their own label the largest logit, and how many there are.

    Accuracy is the one divided by the other; ranks that hold a part of the rows each can add both up. The
    model's mode is as in `negative_log_likelihood`.

    Args:
        model: a classifier of sequences like transformers'; its answer has `logits` (B, labels).
        rows: N of them; one labelled IGNORED counts for nothing.
        batch_size: B, rows in one forward pass; it changes memory, not the answer.
        device: where the model is; of its parameters if not given.

    Raises:
        BadInput: the rows have no labels.
    """
    device = device or _device_of(model, rows.input_ids)
    padding = getattr(getattr(model, "config", None), "pad_token_id", None)
    correct, labelled = 0, 0
    with _evaluating(model):
        for begin in range(0, len(rows), batch_size):
            batch = rows[begin : begin + batch_size].to(device)
            input_ids, classes = batch.input_ids, labels_of(batch)
            if padding is not None:
                # transformers' classifiers know padding by its token, whatever the mask says.
                input_ids = input_ids.masked_fill(~batch.tokens, padding)
            logits = model(input_ids=input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
            correct += int((logits.argmax(dim=-1) == classes).sum())
            labelled += int((classes != IGNORED).sum())
    return correct, labelled


def _device_of(model: Callable[..., Any], text: Tensor) -> torch.device:
    return next(model.parameters()).device if isinstance(model, nn.Module) else text.device


@contextmanager
def _evaluating(model: Callable[..., Any]) -> Iterator[None]:
    """Inside, a module is in evaluation mode; afterwards it is in the mode it was in."""
    if not isinstance(model, nn.Module):
        yield
        return
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)
