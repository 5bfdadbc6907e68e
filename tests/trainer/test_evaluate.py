"""Perplexity and accuracy: against a brute-force twin, and independent of how the text is batched."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds.protocol import Evaluation
from bitnet_trainer.batch import IGNORED, Rows
from bitnet_trainer.errors import BadInput
from bitnet_trainer.evaluate import (
    Perplexity,
    count_correct,
    negative_log_likelihood,
    perplexity_of,
)
from bitnet_trainer.finish import Score, evaluation
from bitnet_trainer.models.sequence_classification import classifier_from
from bitnet_trainer.record import Baseline
from measuring import perplexity


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


@pytest.fixture
def labelled(sequences):
    """Six rows of 12 to 1 tokens, the fourth without a label; their padding is an ordinary token."""
    lengths = torch.tensor([[12], [7], [5], [1], [3], [12]])
    mask = (torch.arange(12) < lengths).long()
    return Rows(
        input_ids=sequences.masked_fill(mask == 0, 9),
        labels=sequences,
        attention_mask=mask,
        classes=torch.tensor([0, 1, 2, IGNORED, 1, 0]),
    )


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("seed", range(5))
def test_correct_rows_are_those_whose_largest_logit_is_their_label(make_model, labelled, batch_size, seed):
    torch.manual_seed(seed)
    classifier = classifier_from(make_model("qwen3"), "abc").train()
    # Each row asked for alone and without its padding.
    answers = torch.tensor(
        [
            int(classifier.score(classifier.model(row[real][None]).last_hidden_state[0, -1]).argmax())
            for row, real in zip(labelled.input_ids, labelled.tokens, strict=True)
        ]
    )
    ignored = labelled.classes == IGNORED
    for wrong in range(6):
        others = (answers + (torch.arange(6) < wrong)) % 3
        rows = replace(labelled, classes=others.masked_fill(ignored, IGNORED))
        right = int((others == answers)[~ignored].sum())
        assert count_correct(classifier, rows, batch_size) == (right, 5)
    assert classifier.training


def test_correct_rows_of_parts_add_up(make_model, labelled):
    classifier = classifier_from(make_model(), "abc")
    parts = [count_correct(classifier, labelled[begin::2]) for begin in range(2)]
    whole = count_correct(classifier, labelled)
    assert tuple(map(sum, zip(*parts, strict=True))) == whole


@pytest.mark.parametrize("right", [True, False])
def test_a_classifier_may_be_all_right_or_all_wrong(labelled, right):
    def oracle(input_ids, **_):
        classes = [labelled.classes[torch.all(labelled.input_ids == row, dim=1)][0] for row in input_ids]
        answers = torch.stack(classes).clamp(min=0) if right else (torch.stack(classes) + 1) % 3
        return SimpleNamespace(logits=torch.nn.functional.one_hot(answers, 3))

    assert count_correct(oracle, labelled, 2) == (5 if right else 0, 5)


def test_accuracy_is_reported_to_the_single_example():
    baseline = Baseline.of(800, 0.5, 0.5)
    found = evaluation(baseline, Score(731 / 800, 800), None, classifier=True)
    assert found == Evaluation(
        examples=800, accuracy_original="0.5000", accuracy_before="0.5000", accuracy_after="0.9137"
    )


def test_accuracy_without_labels_is_an_error(make_model, sequences):
    with pytest.raises(BadInput, match="no labels to classify by"):
        count_correct(make_model(), Rows.of(sequences))
