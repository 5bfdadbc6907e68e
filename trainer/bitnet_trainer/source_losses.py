"""How well the model predicts each source's next text, which is what the policy Bandit goes by."""

from collections.abc import Sequence

from torch import nn

from bitnet_trainer.batch import Rows, SequenceId
from bitnet_trainer.data import Corpus, Cursor
from bitnet_trainer.evaluate import negative_log_likelihood
from bitnet_trainer.ranks import Ranks


def measure_losses(
    model: nn.Module, corpus: Corpus, cursor: Cursor, ranks: Ranks, *, sequences: int = 16
) -> tuple[float, ...]:
    """The mean cross-entropy of a token of each source's next sequences, in nats; not finite where it is not.

    Every rank calls it, computes its part of the sequences one at a time, and gets the same numbers; they
    follow from weights and cursor alone. The sequences are not consumed, and the model's mode and random
    numbers are left as they were. Run it under autocast where training does.

    Args:
        model: a causal LM like transformers', not wrapped; sharded, as `sharding.called_directly` has it.
        corpus: of packed text.
        cursor: where training stands.
        ranks: who shares the work.
        sequences: how many of each source.
    """
    losses = tuple(
        _loss(model, corpus.rows(_next(corpus, cursor, source, sequences)), ranks)
        for source in range(len(corpus.sources))
    )
    # Cards of two kinds could round otherwise, and ranks that mix otherwise would train on each other's text.
    return losses if ranks.world == 1 else ranks.from_first(losses)


def _next(corpus: Corpus, cursor: Cursor, source: int, count: int) -> Sequence[SequenceId]:
    only = [float(other == source) for other in range(len(corpus.sources))]
    return corpus.take(cursor.rebased(), count, only)[0]


def _loss(model: nn.Module, rows: Rows, ranks: Ranks) -> float:
    total, tokens = negative_log_likelihood(model, rows.share(ranks.rank, ranks.world), 1, ranks.device)
    if ranks.world > 1:
        total, (tokens,) = ranks.total_of(total), ranks.total(tokens)
    # Separate documents of one token each have nothing to predict.
    return total / tokens if tokens else 0.0
