"""The shares of sources that a policy measures, by their losses or by where their gradients point."""

from torch import nn

from bitnet_crds.data import Mixture
from bitnet_trainer.data import Corpus, Cursor, explored, influenced, rewarded
from bitnet_trainer.influence import measure_alignments
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.source_losses import measure_losses


def measured_shares(
    policy: Mixture,
    turn: int,
    shares: tuple[float, ...],
    rewards: tuple[float, ...],
    *,
    model: nn.Module,
    corpus: Corpus,
    cursor: Cursor,
    ranks: Ranks,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The shares that follow from how the model reads each source's next text, and Bandit's rewards then.

    Every rank calls it, and gets the same. Run it under autocast where training does.

    Args:
        policy: Bandit or Influence.
        turn: which time this is, from 1.
        shares: those that hold, one a source.
        rewards: Bandit's, one a source; none before its first turn.
        model: a causal LM like transformers', not wrapped; sharded, as `sharding.called_directly` has it.
        corpus: of packed text.
        cursor: where training stands; nothing of what is read from there is consumed.
        ranks: who shares the work.
    """
    if policy.policy == "Bandit":
        rewards = rewarded(rewards, measure_losses(model, corpus, cursor, ranks), policy.smoothed_by)
        return (explored(rewards, turn) if rewards else shares), rewards
    alignments = measure_alignments(model, corpus, cursor, ranks, target=policy.target)
    return influenced(shares, alignments, policy.smoothed_by), rewards
