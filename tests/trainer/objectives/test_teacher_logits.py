"""teacherLogits: all of the vocabulary, its top with the tail, its top alone; of clean and of masked text."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from answering import (
    CPU,
    MASK,
    VOCABULARY,
    SmallModel,
    SmallTeacher,
    assert_same,
    batch_of,
    few,
    gradients_of,
    predicted,
    rows_of,
    some_rows,
)
from bitnet_trainer.answer import Answer, Capture
from bitnet_trainer.batch import IGNORED
from bitnet_trainer.errors import TeacherUnavailable
from bitnet_trainer.objectives.masking import Masking
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.teacher_logits import TeacherLogitsObjective, teacher_logits, teacher_top_k
from bitnet_trainer.objectives.top_k import top_k_of

WAYS = [(None, "Bucket"), (1, "Bucket"), (4, "Bucket"), (VOCABULARY, "Bucket"), (4, "Renormalized")]
"""Top K and tail."""
ways = st.sampled_from(WAYS)
temperatures = st.sampled_from([0.5, 1.0, 5.0])


def divergence(own, goal, temperature, top_k, tail):
    """T^2 KL of one position's logits (V,), outcome by outcome."""
    p, q = ((logits / temperature).exp() for logits in (goal, own))
    p, q = p / p.sum(), q / q.sum()
    if top_k is not None:
        top = goal.argsort(descending=True)[:top_k]
        others = torch.ones_like(p, dtype=torch.bool).index_fill(0, top, False)
        if tail == "Renormalized":
            p, q = p[top] / p[top].sum(), q[top] / q[top].sum()
        elif others.any():
            p, q = (torch.cat((side[top], side[others].sum()[None])) for side in (p, q))
    return temperature**2 * (p * (p / q).log()).sum()


def twin(own, goal, labels, temperature, top_k, tail):
    """Logits (B, S, V) of both sides, position by position."""
    total = torch.zeros((), dtype=torch.float64)
    for row, place, _ in predicted(labels):
        total = total + divergence(own[row, place], goal[row, place].detach(), temperature, top_k, tail)
    return total


def logits_of(answer):
    return answer.head(answer.hidden)


def loss_of(student, teacher, labels, temperature, top_k, tail, chunk=1000):
    """The public functions, by what is asked."""
    if top_k is None:
        return teacher_logits(student, teacher, labels, temperature, chunk)
    top = top_k_of(teacher.hidden, teacher.head, top_k, temperature, chunk)
    return teacher_top_k(student, top, labels, temperature, tail, chunk)


def given_logits(logits):
    """An answer whose head does nothing."""
    return Answer(logits, lambda hidden: hidden)


@few
@given(some_rows(), ways, temperatures, st.sampled_from([1, 4, 1000]))
def test_it_is_its_twin_whatever_the_chunks(rows, way, temperature, chunk):
    # Another width: only the vocabulary has to be the same.
    student, teacher = SmallModel(0), SmallModel(1, layers=3, width=6)
    own, goal = (model(rows.input_ids, None, Capture()) for model in (student, teacher))
    loss = loss_of(own, goal, rows.labels, temperature, *way, chunk)
    assert_same(loss.total, twin(logits_of(own), logits_of(goal), rows.labels, temperature, *way), student)
    assert loss.tokens == len(list(predicted(rows.labels)))
    assert not any(gradient.any() for gradient in gradients_of(loss.total, teacher).values())


@few
@given(some_rows(), ways, temperatures)
def test_the_objective_compares_the_batchs_two_models_on_clean_text(rows, way, temperature):
    student, teacher = SmallModel(0), SmallModel(1)
    objective = TeacherLogitsObjective(temperature, *way, masking=None)
    loss = objective(batch_of(student, rows, objective, teacher))
    own, goal = (logits_of(model(rows.input_ids, None, Capture())) for model in (student, teacher))
    assert_same(loss.total, twin(own, goal, rows.labels, temperature, *way), student)
    assert loss.tokens == objective.count(rows)


@few
@given(some_rows(), ways, st.sampled_from(["Independent", "Complementary"]))
def test_a_student_of_masked_text_follows_a_teacher_of_the_text(rows, way, mode):
    student, teacher = SmallModel(0), SmallModel(1)
    objective = TeacherLogitsObjective(2.0, *way, masking=Masking(0.5, MASK, mode, seed=1))
    loss = objective(batch_of(student, rows, objective, teacher))
    masked = objective.masking(rows)
    assert torch.equal(teacher.seen[0], rows.input_ids)
    assert torch.equal(student.seen[0], masked.input_ids)
    own = logits_of(student(masked.input_ids, None, Capture()))
    goal = logits_of(teacher(rows.input_ids, None, Capture())).repeat(len(masked) // len(rows), 1, 1)
    assert_same(loss.total, twin(own, goal, masked.labels, 2.0, *way), student)
    assert loss.tokens == objective.count(rows) == (masked.input_ids == MASK).sum()


def test_the_teacher_is_asked_once_for_a_row_that_is_masked_twice():
    class Counted(SmallTeacher):
        asked = 0

        def top_k(self, *question):
            self.asked += 1
            return super().top_k(*question)

    teacher, rows = Counted(SmallModel(1)), rows_of(9, 9)
    objective = TeacherLogitsObjective(2.0, 4, "Bucket", Masking(0.5, MASK, "Complementary", seed=1))
    objective(MicroBatch(SmallModel(0), rows, CPU, layers=4, teacher=teacher))
    assert teacher.asked == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_token_that_the_teacher_rules_out_counts_for_nothing(way):
    """Its logit is -inf, so 0 log 0 stands in the sum."""
    torch.manual_seed(0)
    own, goal = torch.randn(2, 1, 4, VOCABULARY, dtype=torch.float64).unbind()
    labels = torch.zeros(1, 4, dtype=torch.long)

    def found(least: float) -> tuple[torch.Tensor, torch.Tensor]:
        logits, ruled = own.clone().requires_grad_(), goal.clone()
        ruled[..., 5] = least
        loss = loss_of(given_logits(logits), given_logits(ruled), labels, 2.0, *way).total
        return loss, torch.autograd.grad(loss, logits)[0]

    for one, other in zip(found(-torch.inf), found(-1e4), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shift", [0, 1])
def test_a_student_that_is_its_teacher_has_no_loss_and_one_that_is_a_place_behind_has(way, shift):
    model, rows = SmallModel(0), rows_of(9, 9)
    answer = model(rows.input_ids, None, Capture())
    behind = answer._replace(hidden=answer.hidden.roll(shift, dims=1))
    loss = loss_of(behind, answer, rows.labels, 2.0, *way)
    largest = max(gradient.abs().max() for gradient in gradients_of(loss.total, model).values())
    assert (abs(loss.total) < 1e-12) == (largest < 1e-12) == (shift == 0)
    if shift:
        assert loss.total > 0.01


@pytest.mark.parametrize("way", WAYS)
def test_the_place_that_predicts_nothing_counts_for_nothing(way):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 6, VOCABULARY, dtype=torch.float64), rows_of(6, 6).labels
    changed = logits.clone()
    changed[:, -1] += torch.randn(VOCABULARY)
    loss = loss_of(given_logits(changed), given_logits(logits), labels, 1.0, *way)
    assert loss.total == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("k", [VOCABULARY, VOCABULARY + 1, 10_000])
def test_a_top_of_the_whole_vocabulary_is_the_whole_vocabulary(k):
    student, rows = SmallModel(0), rows_of(9, 9)
    own, goal = (model(rows.input_ids, None, Capture()) for model in (student, SmallModel(1)))
    full = loss_of(own, goal, rows.labels, 5.0, None, "Bucket")
    for tail in ("Bucket", "Renormalized"):
        assert_same(loss_of(own, goal, rows.labels, 5.0, k, tail).total, full.total, student)


def test_only_the_bucket_sees_mass_outside_the_top():
    goal = torch.tensor([5.0, 4.0, 0.0, 0.0, 0.0]).expand(1, 2, 5)
    strays = torch.tensor([5.0, 4.0, 9.0, 9.0, 9.0]).expand(1, 2, 5)
    labels = torch.zeros(1, 2, dtype=torch.long)
    bucket, alone = (
        loss_of(given_logits(strays), given_logits(goal), labels, 1.0, 2, tail).total
        for tail in ("Bucket", "Renormalized")
    )
    assert bucket > 1
    assert alone == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sure", [20.0, 200.0, 2000.0])
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
def test_a_tail_of_next_to_nothing_has_a_finite_loss_and_gradient(sure, who):
    torch.manual_seed(0)
    peaked = torch.zeros(1, 4, VOCABULARY)
    peaked[..., :3] = sure
    flat = torch.randn(1, 4, VOCABULARY)
    own, goal = {"student": (peaked, flat), "teacher": (flat, peaked), "both": (peaked, peaked)}[who]
    own = own.clone().requires_grad_()
    labels = torch.zeros(1, 4, dtype=torch.long)
    loss = loss_of(given_logits(own), given_logits(goal), labels, 1.0, 3, "Bucket").total
    (gradient,) = torch.autograd.grad(loss, own)
    # Float32 holds logits, and what is made of them, to some 1e-7 of their size.
    near = {"rtol": 1e-4, "atol": 1e-5 + 1e-6 * sure}
    own64 = own.detach().double().requires_grad_()
    exact = loss_of(given_logits(own64), given_logits(goal.double()), labels, 1.0, 3, "Bucket").total
    torch.testing.assert_close(loss, exact.float(), **near)
    torch.testing.assert_close(gradient, torch.autograd.grad(exact, own64)[0].float(), **near)
    if who == "both":
        assert loss.item() == pytest.approx(0, abs=1e-9)
        assert gradient.abs().max() < 1e-7 * sure


@pytest.mark.parametrize("way", WAYS)
def test_labels_that_are_all_ignored_and_no_masked_token_give_zero_and_no_nan(way):
    student, teacher, rows = SmallModel(0), SmallModel(1), rows_of(2, 1, 0)
    own, goal = (model(rows.input_ids, None, Capture()) for model in (student, teacher))
    losses = [loss_of(own, goal, torch.full_like(rows.labels, IGNORED), 5.0, *way)]
    for mode in ("Independent", "Complementary"):
        objective = TeacherLogitsObjective(5.0, *way, masking=Masking(0.5, MASK, mode, seed=1))
        losses.append(objective(batch_of(student, rows, objective, teacher)))
    for loss in losses:
        assert (loss.total.item(), loss.tokens.item(), loss.mean.item()) == (0.0, 0, 0.0)
        assert not any(gradient.any() for gradient in gradients_of(loss.total, student).values())


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_logits_are_summed_in_float32(way):
    torch.manual_seed(0)
    own, goal = torch.randn(2, 2, 8, VOCABULARY).bfloat16().unbind()
    labels = torch.zeros(2, 8, dtype=torch.long)
    found = loss_of(given_logits(own), given_logits(goal), labels, 2.0, *way).total
    assert found.dtype == torch.float32
    longer = loss_of(given_logits(own.double()), given_logits(goal.double()), labels, 2.0, *way).total
    torch.testing.assert_close(found, longer.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_without_a_teacher_it_is_an_error(way):
    objective = TeacherLogitsObjective(1.0, *way, masking=None)
    with pytest.raises(TeacherUnavailable, match=r"no teacher is loaded.*spec\.teacher"):
        objective(batch_of(SmallModel(0), rows_of(4), objective))
