"""The shares of sources that a policy measures, by their losses or by where their gradients point."""

from bitnet_crds.protocol import Order
from bitnet_trainer.data import Corpus, Cursor, LabelledCorpus, explored, influenced, rewarded
from bitnet_trainer.influence import measure_alignments
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.sharding import called_directly
from bitnet_trainer.source_losses import measure_losses
from bitnet_trainer.step import autocast


def measured_shares(
    order: Order,
    step: int,
    shares: tuple[float, ...],
    rewards: tuple[float, ...],
    *,
    student: LanguageModel,
    corpus: Corpus | LabelledCorpus,
    cursor: Cursor,
    ranks: Ranks,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The shares that follow from how the model reads each source's next text, and Bandit's rewards then.

    Every rank calls it, and gets the same.

    Args:
        order: whose policy is Bandit or Influence.
        step: that comes next.
        shares: those that hold, one a source.
        rewards: Bandit's, one a source; none before its first turn.
        student: a causal LM, sharded or not.
        corpus: of packed text: a classifier's spec has no such policy.
        cursor: where training stands; nothing of what is read from there is consumed.
        ranks: who shares the work.
    """
    assert isinstance(corpus, Corpus)
    policy, plan, model = order.spec.data.mixture, order.plan, student.model
    # What the next step passes over is nothing to be measured on, either.
    cursor = cursor.past(plan.passed_over_before(step) * plan.global_batch_size, shares)
    with autocast(ranks.device), called_directly(student):
        if policy.policy == "Bandit":
            rewards = rewarded(rewards, measure_losses(model, corpus, cursor, ranks), policy.smoothed_by)
            turn = step // policy.measured_every
            return (explored(rewards, turn) if rewards else shares), rewards
        alignments = measure_alignments(model, corpus, cursor, ranks, target=policy.target)
    return influenced(shares, alignments, policy.smoothed_by), rewards
