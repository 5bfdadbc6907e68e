"""Perplexity: against a brute-force twin, and independent of how the text is batched."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet_trainer.errors import BadInput
from bitnet_trainer.evaluate import Perplexity, negative_log_likelihood, perplexity, perplexity_of


def test_it_is_the_exponential_of_the_mean_over_all_tokens(make_model, sequences):
    model = make_model()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for sequence in sequences:
            probabilities = model(sequence[None]).logits[0].double().softmax(-1)
            for place in range(len(sequence) - 1):
                total -= math.log(probabilities[place, sequence[place + 1]])
                tokens += 1
    found = perplexity(model, sequences)
    assert found.tokens == tokens == 6 * 11
    assert found.value == pytest.approx(math.exp(total / tokens), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_batch_size_changes_nothing(make_model, sequences, batch_size):
    model = make_model()
    assert perplexity(model, sequences, batch_size).value == pytest.approx(
        perplexity(model, sequences, 6).value, rel=1e-5
    )


def test_parts_add_up_to_the_whole(make_model, sequences):
    model = make_model()
    parts = [negative_log_likelihood(model, part) for part in sequences.split(2)]
    whole = perplexity_of(sum(total for total, _ in parts), sum(tokens for _, tokens in parts))
    assert whole.value == pytest.approx(perplexity(model, sequences).value, rel=1e-5)


@given(st.integers(2, 50))
def test_a_uniform_model_is_as_perplexed_as_there_are_tokens(vocabulary):
    def uniform(input_ids, **_):
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, vocabulary))

    assert perplexity(uniform, torch.ones(2, 5, dtype=torch.long)).value == pytest.approx(
        vocabulary, rel=1e-4
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_it_was_in(make_model, sequences, training):
    model = make_model().train(training)
    modes = []
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    perplexity(model, sequences)
    assert modes == [False]
    assert model.training is training


def test_huge_losses_are_infinite_and_nan_stays_nan():
    assert perplexity_of(1e6, 10) == Perplexity(math.inf, 10)
    assert math.isnan(perplexity_of(math.nan, 10).value)


@pytest.mark.parametrize("shape", [(0, 8), (3, 1)])
def test_nothing_to_predict_is_an_error(make_model, shape):
    with pytest.raises(BadInput, match="no token to measure perplexity on"):
        perplexity(make_model(), torch.zeros(shape, dtype=torch.long))
