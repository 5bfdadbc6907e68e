"""maskedDiffusion: its twin, nothing masked, and an input that no other objective sees."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from answering import MASK, SmallModel, assert_same, batch_of, few, gradients_of, rows_of, some_rows
from bitnet_trainer.answer import Answer, Capture
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.objectives.masked_diffusion import MaskedDiffusionObjective
from bitnet_trainer.objectives.masking import Masking
from bitnet_trainer.objectives.micro_batch import MicroBatch

PLAIN = CrossEntropyObjective()


def diffusion(probability=0.5, mode="Independent"):
    return MaskedDiffusionObjective(Masking(probability, MASK, mode, seed=5))


def twin(student, text, masked):
    """Each masked token from the logits one place before it, from the formula."""
    logits = student(masked, None, Capture())
    logits = logits.head(logits.hidden)
    total = torch.zeros((), dtype=torch.float64)
    for row, place in (masked == MASK).nonzero().tolist():
        before = logits[row, place - 1]
        total = total - before[text[row, place]] + before.exp().sum().log()
    return total


@few
@given(some_rows(), st.sampled_from(["Independent", "Complementary"]))
def test_it_is_its_twin(rows, mode):
    student, objective = SmallModel(0), diffusion(mode=mode)
    loss = objective(batch_of(student, rows, objective))
    masked = objective.masking(rows).input_ids
    text = rows.input_ids.repeat(len(masked) // len(rows), 1)
    assert_same(loss.total, twin(student, text, masked), student)
    assert loss.tokens == objective.count(rows) == (masked == MASK).sum()


def test_complementary_predicts_each_inner_token_once():
    assert diffusion(mode="Complementary").count(rows_of(9, 4, 2, 1, 0)) == 7 + 2


def test_a_token_is_predicted_from_the_place_before_it():
    rows, objective = rows_of(30), diffusion()

    def knowing(shift):
        """A student that is sure, at each place, of the token `shift` places on."""
        sure = 100.0 * torch.nn.functional.one_hot(rows.input_ids, MASK + 1).roll(-shift, dims=1)
        batch = MicroBatch(lambda *_: Answer(sure, lambda hidden: hidden), rows, torch.device("cpu"))
        return objective(batch).mean

    assert knowing(1) == pytest.approx(0)
    assert knowing(0) > 50


@pytest.mark.parametrize("mode", ["Independent", "Complementary"])
def test_no_masked_token_is_a_loss_of_zero_and_no_nan(mode):
    student, objective = SmallModel(0), diffusion(mode=mode)
    loss = objective(batch_of(student, rows_of(2, 1, 0), objective))
    assert (loss.total.item(), loss.tokens.item(), loss.mean.item()) == (0.0, 0, 0.0)
    assert not any(gradient.any() for gradient in gradients_of(loss.total, student).values())


@pytest.mark.parametrize("order", ["first", "last", "alone"])
def test_cross_entropy_beside_it_is_plain_cross_entropy_to_the_last_bit(order):
    rows = rows_of(9, 6, 9)
    before = copy.deepcopy(rows)
    student, objective = SmallModel(0), diffusion(0.9)
    plain = PLAIN(batch_of(SmallModel(0), before, PLAIN)).total
    batch = batch_of(student, rows, PLAIN)
    if order == "first":
        objective(batch)
    beside = PLAIN(batch).total
    if order == "last":
        objective(batch)
    assert torch.equal(beside, plain)
    assert torch.equal(rows.input_ids, before.input_ids)
    assert torch.equal(rows.labels, before.labels)
    clean = [torch.equal(seen, before.input_ids) for seen in student.seen]
    assert clean == {"first": [False, True], "last": [True, False], "alone": [True]}[order]
