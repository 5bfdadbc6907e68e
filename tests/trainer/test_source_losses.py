"""What the policy Bandit measures, and that it moves the shares to what is still to be learned."""

import random
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bitnet_trainer.data import Corpus, Cursor, explored, rewarded
from bitnet_trainer.data.packing import pack
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.source_losses import measure_losses

S = 16
EASY, HARD = 0, 1
CURSOR = Cursor((5, 9), (0, 0))


@pytest.fixture
def alone():
    return Ranks(0, 1, torch.device("cpu"), None)


@pytest.fixture
def corpus():
    """One source repeats a word and is learned at once; the other counts, and takes its time."""
    draw = random.Random(0)
    easy = [2 + draw.randrange(20) // 19 for _ in range(60 * S)]
    hard = [2 + (7 * place + draw.randrange(2)) % 58 for place in range(60 * S)]
    sources = tuple(
        pack(name, np.array(tokens, np.uint32), S, Fraction(1, 5))
        for name, tokens in (("easy", easy), ("hard", hard))
    )
    return Corpus(sources, (3.0, 1.0), seed=0)


def by_hand(model, corpus, source, count):
    """In float64, over the tokens of the source's next sequences."""
    only = [float(other == source) for other in range(2)]
    rows = corpus.rows(corpus.take(CURSOR.rebased(), count, only)[0])
    logits = model(input_ids=rows.input_ids).logits.double()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), rows.labels[:, 1:].flatten()).item()


def test_losses_are_of_the_next_text_of_each_source_and_leave_no_trace(make_model, corpus, alone):
    model = make_model(attention_dropout=0.5)
    expected = [by_hand(model, corpus, source, 3) for source in (EASY, HARD)]
    model.train()
    state = torch.get_rng_state()
    found = measure_losses(model, corpus, CURSOR, alone, sequences=3)
    assert found == pytest.approx(expected, rel=1e-5)
    assert measure_losses(model, corpus, CURSOR, alone, sequences=3) == found
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


class OneOfTwo(Ranks):
    """One of two ranks, the other of which has measured `others`."""

    def total_of(self, value):
        return value + OTHERS.pop(0)

    def total(self, *counts):
        return tuple(2 * count for count in counts)

    def from_first(self, thing):
        return thing


OTHERS = []


def test_ranks_share_the_sequences(make_model, corpus, alone):
    """Each measures every second one; their sums and counts are added up."""
    model, cpu = make_model(), torch.device("cpu")
    parts = []
    for rank in (0, 1):
        OTHERS[:] = [0.0, 0.0]
        parts.append(measure_losses(model, corpus, CURSOR, OneOfTwo(rank, 2, cpu, None), sequences=4))
    assert parts[0] != parts[1]
    together = [sum(halves) for halves in zip(*parts, strict=True)]
    assert together == pytest.approx(list(measure_losses(model, corpus, CURSOR, alone, sequences=4)))


def train(model, corpus, ranks, policy):
    """40 steps of 8 sequences, measured every 4; the weights in effect at the end, and what was read."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    cursor, weights, rewards, read = Cursor.at_start(2), corpus.weights, (), [0, 0]
    for step in range(40):
        if policy == "Bandit" and step and step % 4 == 0:
            rewards = rewarded(rewards, measure_losses(model, corpus, cursor, ranks), 0.5)
            weights, cursor = explored(rewards, step // 4), cursor.rebased()
        batch, cursor = corpus.take(cursor, 8, weights)
        for id_ in batch:
            read[id_.source] += 1
        rows = corpus.rows(batch)
        model(input_ids=rows.input_ids, labels=rows.labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights, read


def test_what_is_still_to_be_learned_gains_under_bandit_and_under_that_policy_alone(
    make_model, corpus, alone
):
    """It begins with a third of the other's weight."""
    weights, read = train(make_model(), corpus, alone, "Bandit")
    assert weights[HARD] > 1.3 * weights[EASY]
    assert weights[EASY] > 0.1
    still, static = train(make_model(), corpus, alone, "Static")
    assert still == corpus.weights
    assert static == [240, 80]
    assert read[HARD] > 1.5 * static[HARD]
