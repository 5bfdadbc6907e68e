"""How far each source's text moves the model the way that lowers the loss on held-out text."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bitnet_trainer.batch import Rows, SequenceId
from bitnet_trainer.data import Corpus, Cursor
from bitnet_trainer.objectives.cross_entropy import cross_entropy
from bitnet_trainer.ranks import Ranks


def measure_alignments(
    model: nn.Module,
    corpus: Corpus,
    cursor: Cursor,
    ranks: Ranks,
    *,
    target: str | None = None,
    sequences: int = 16,
) -> tuple[float, ...]:
    """The cosine between the cross-entropy gradients of each source's text and of held-out text.

    The gradients are those of embedding and head, once where they are tied, frozen or not. Every rank calls
    it, computes its part of the sequences one at a time, and gets the same numbers; they follow from weights
    and cursor alone. The model's gradients, mode and random numbers are left as they were. Run it under
    autocast where training does. Source: as `bitnet_trainer.data.influenced`, which makes shares of it.

    Args:
        model: a causal LM like transformers', not wrapped; sharded, as `sharding.called_directly` has it.
        corpus: of packed text.
        cursor: where training stands; a source's text is its next sequences, which are not consumed.
        ranks: who shares the work.
        target: the name of the source whose held-out text counts; without it all sources', by the weights as
            written.
        sequences: how many of each source, and as many held-out ones for each source that counts.

    Returns:
        One number a source, in [-1, 1]; 0 where a gradient is 0 or not finite.
    """
    names = [source.name for source in corpus.sources]
    if target is None:
        held_out = corpus.take_held_out(cursor, sequences * len(names), corpus.weights)
    else:
        held_out = corpus.take_held_out(cursor, sequences, _only(target, names))
    here = cursor.rebased()
    with _differentiable(model) as parameters:

        def gradient(ids: Sequence[SequenceId], rows: Callable[[Sequence[SequenceId]], Rows]) -> Tensor:
            return _gradient(model, parameters, rows(ids).share(ranks.rank, ranks.world), ranks)

        towards = gradient(held_out, corpus.held_out_rows)
        alignments = tuple(
            _cosine(gradient(corpus.take(here, sequences, _only(name, names))[0], corpus.rows), towards)
            for name in names
        )
    # Cards of two kinds could round otherwise, and ranks that mix otherwise would train on each other's text.
    return alignments if ranks.world == 1 else ranks.from_first(alignments)


def _only(name: str, names: Sequence[str]) -> tuple[float, ...]:
    """All weight on one source."""
    return tuple(float(other == name) for other in names)


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[tuple[nn.Parameter, ...]]:
    """Embedding and head, with a gradient for now, in a model that draws nothing at random."""
    ends: tuple[Any, ...] = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    parameters = {id(end.weight): end.weight for end in ends if end is not None}
    modes = [(module, module.training) for module in model.modules()]
    frozen = [parameter for parameter in parameters.values() if not parameter.requires_grad]
    model.eval()
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield tuple(parameters.values())
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, training in modes:
            module.training = training


def _gradient(model: nn.Module, parameters: Sequence[nn.Parameter], own: Rows, ranks: Ranks) -> Tensor:
    """The gradient of the summed cross-entropy of all ranks' rows, (parameters,) float32.

    It points where the mean's does.
    """
    sizes = [parameter.numel() for parameter in parameters]
    total = torch.zeros(sum(sizes), device=ranks.device)
    for row in range(len(own)):
        there = own[row : row + 1].to(ranks.device)
        answer = model(input_ids=there.input_ids, position_ids=there.position_ids, use_cache=False)
        loss = cross_entropy(answer.logits, there.labels)
        # Not by backward, which would reach the gradients that training accumulates, and DDP's hooks.
        parts = torch.autograd.grad(loss.total, parameters)
        for whole, part in zip(torch.split(total, sizes), parts, strict=True):
            whole += part.flatten()
    if ranks.world > 1:
        dist.all_reduce(total)
    return total


def _cosine(one: Tensor, other: Tensor) -> float:
    norms = torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other)
    cosine = (torch.dot(one, other) / norms).item()
    return max(-1.0, min(1.0, cosine)) if math.isfinite(cosine) else 0.0
