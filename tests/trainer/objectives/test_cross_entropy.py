"""crossEntropy: its twin, whatever the chunks, and its own input."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from answering import SmallModel, assert_same, batch_of, few, gradients_of, predicted, rows_of, some_rows
from bitnet_trainer.answer import Capture
from bitnet_trainer.batch import IGNORED
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective, cross_entropy, cross_entropy_of

PLAIN = CrossEntropyObjective()


def twin(answer, labels):
    """Token by token, from the formula."""
    total = torch.zeros((), dtype=torch.float64)
    for row, place, token in predicted(labels):
        logits = answer.head(answer.hidden[row, place])
        total = total - logits[token] + logits.exp().sum().log()
    return total


@few
@given(some_rows(), st.sampled_from([1, 4, 1000]))
def test_it_is_its_twin_whatever_the_chunks(rows, chunk):
    student = SmallModel(0)
    answer = student(rows.input_ids, None, Capture())
    loss = cross_entropy_of(answer.hidden, answer.head, rows.labels, chunk)
    assert_same(loss.total, twin(answer, rows.labels), student)
    assert loss.tokens == len(list(predicted(rows.labels)))
    of_logits = cross_entropy(answer.head(answer.hidden), rows.labels, chunk)
    torch.testing.assert_close(of_logits.total, loss.total)


@given(some_rows())
@few
def test_the_objective_is_of_the_student_and_counts_beforehand(rows):
    student = SmallModel(0)
    loss = PLAIN(batch_of(student, rows, PLAIN))
    assert_same(loss.total, twin(student(rows.input_ids, None, Capture()), rows.labels), student)
    assert loss.tokens == PLAIN.count(rows)


def test_the_token_after_is_predicted_and_not_the_token():
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    sure = 100 * nn.functional.one_hot(tokens, 7).double()
    assert cross_entropy(sure.roll(-1, dims=1), tokens).total == pytest.approx(0)
    assert cross_entropy(sure, tokens).total == pytest.approx(400)


def test_labels_that_are_all_ignored_give_zero_and_no_nan():
    student, rows = SmallModel(0), rows_of(4, 0)
    answer = student(rows.input_ids, None, Capture())
    loss = cross_entropy_of(answer.hidden, answer.head, torch.full_like(rows.labels, IGNORED))
    assert (loss.total.item(), loss.tokens.item(), loss.mean.item()) == (0.0, 0, 0.0)
    assert not any(gradient.any() for gradient in gradients_of(loss.total, student).values())


def test_rows_add_up_to_the_batch_whatever_their_lengths():
    student, rows = SmallModel(0), rows_of(9, 4, 0, 7)
    whole = PLAIN(batch_of(student, rows, PLAIN))
    parts = [PLAIN(batch_of(student, rows[row : row + 1], PLAIN)) for row in range(4)]
    together = parts[0] + parts[1] + parts[2] + parts[3]
    assert_same(together.total, whole.total, student)
    torch.testing.assert_close(together.mean, whole.mean)


def test_bfloat16_logits_are_summed_in_float32():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 8, 40).bfloat16(), torch.randint(40, (2, 8))
    found = cross_entropy(logits, labels).total
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cross_entropy(logits.float(), labels).total)


def test_chunks_computed_again_under_autocast_give_the_gradient_of_one_chunk():
    torch.manual_seed(0)
    hidden, labels, head = torch.randn(2, 8, 4), torch.randint(30, (2, 8)), nn.Linear(4, 30)

    def gradient(chunk):
        with torch.autocast("cpu", torch.bfloat16):
            total = cross_entropy_of(hidden, head, labels, chunk).total
        return gradients_of(total, head)

    torch.testing.assert_close(gradient(5), gradient(1000), rtol=1e-2, atol=1e-2)
    plain = gradients_of(cross_entropy_of(hidden, head, labels).total, head)
    torch.testing.assert_close(gradient(5), plain, rtol=5e-2, atol=5e-2)
