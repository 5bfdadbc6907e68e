"""Objectives against brute-force twins in float64, and the manager that weighs them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from bitnet_crds.spec import CrossEntropy, Objectives, TeacherLogits
from bitnet_trainer.errors import BadInput, TeacherUnavailable
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective, cross_entropy
from bitnet_trainer.objectives.manager import ObjectiveManager, add_up, objectives_of
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.teacher_logits import TeacherLogitsObjective, teacher_logits
from bitnet_trainer.objectives.token_loss import IGNORED, TokenLoss, count_targets

CHUNKS = [1, 4, 1000]


@st.composite
def cases(draw):
    """Logits of student and teacher (B, S, V) in float64 and labels (B, S), some of them ignored."""
    rows, length, vocabulary = draw(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(2, 7)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = draw(st.sampled_from([0.1, 1.0, 30.0]))
    shape = (rows, length, vocabulary)
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) * size for _ in range(2))
    labels = torch.randint(vocabulary, (rows, length), generator=generator)
    ignored = torch.rand(rows, length, generator=generator) < draw(st.sampled_from([0.0, 0.4, 1.0]))
    return student, teacher, labels.masked_fill(ignored, IGNORED)


def log_probabilities(logits, temperature):
    scaled = [value / temperature for value in logits]
    largest = max(scaled)
    norm = largest + math.log(sum(math.exp(value - largest) for value in scaled))
    return [value - norm for value in scaled]


def predicted(labels):
    """Where something is predicted: (row, place, the token after it)."""
    for row, tokens in enumerate(labels.tolist()):
        for place in range(len(tokens) - 1):
            if tokens[place + 1] != IGNORED:
                yield row, place, tokens[place + 1]


def cross_entropy_twin(student, labels):
    return sum(
        -log_probabilities(student[row, place].tolist(), 1.0)[token]
        for row, place, token in predicted(labels)
    )


def teacher_logits_twin(student, teacher, labels, temperature):
    total = 0.0
    for row, place, _ in predicted(labels):
        own = log_probabilities(student[row, place].tolist(), temperature)
        goal = log_probabilities(teacher[row, place].tolist(), temperature)
        total += sum(math.exp(q) * (q - p) for p, q in zip(own, goal, strict=True))
    return temperature**2 * total


@given(cases(), st.sampled_from(CHUNKS))
def test_cross_entropy_is_its_twin(case, chunk):
    student, _, labels = case
    loss = cross_entropy(student, labels, chunk)
    assert loss.total.item() == pytest.approx(cross_entropy_twin(student, labels), rel=1e-9, abs=1e-9)
    assert loss.tokens.item() == len(list(predicted(labels))) == count_targets(labels).item()


@given(cases(), st.sampled_from(CHUNKS), st.sampled_from([0.5, 1.0, 5.0]))
def test_teacher_logits_is_its_twin(case, chunk, temperature):
    student, teacher, labels = case
    loss = teacher_logits(student, teacher, labels, temperature, chunk)
    twin = teacher_logits_twin(student, teacher, labels, temperature)
    assert loss.total.item() == pytest.approx(twin, rel=1e-9, abs=1e-9)
    assert loss.total.item() >= -1e-9
    assert loss.tokens.item() == len(list(predicted(labels)))


@given(cases(), st.sampled_from(CHUNKS), st.sampled_from([1.0, 5.0]))
def test_gradients_are_the_closed_forms(case, chunk, temperature):
    student, teacher, labels = case
    student.requires_grad_()
    goals = torch.zeros_like(student)
    pull = torch.zeros_like(student)
    for row, place, token in predicted(labels):
        # d CE = p_S - one-hot; d T^2 KL = T (p_S - p_T).
        goals[row, place] = student[row, place].softmax(-1)
        goals[row, place, token] -= 1
        own, goal = ((logits[row, place] / temperature).softmax(-1) for logits in (student, teacher))
        pull[row, place] = temperature * (own - goal)
    (found,) = torch.autograd.grad(cross_entropy(student, labels, chunk).total, student)
    torch.testing.assert_close(found, goals.detach())
    (found,) = torch.autograd.grad(
        teacher_logits(student, teacher, labels, temperature, chunk).total, student
    )
    torch.testing.assert_close(found, pull.detach())


def test_gradcheck():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 4, 5, dtype=torch.float64).unbind()
    labels = torch.randint(5, (2, 4))
    student.requires_grad_()
    assert gradcheck(lambda logits: cross_entropy(logits, labels, 3).total, (student,))
    assert gradcheck(lambda logits: teacher_logits(logits, teacher, labels, 2.0, 3).total, (student,))


@given(cases())
def test_a_student_equal_to_its_teacher_has_no_loss(case):
    student, _, labels = case
    loss = teacher_logits(student, student.clone(), labels, 2.0)
    assert loss.total.item() == pytest.approx(0, abs=1e-9)


def test_teacher_and_student_are_compared_at_the_same_place():
    torch.manual_seed(0)
    logits = torch.randn(1, 6, 5)
    labels = torch.randint(5, (1, 6))
    assert teacher_logits(logits, logits, labels, 1.0).total.item() == pytest.approx(0, abs=1e-5)
    assert teacher_logits(logits, logits.roll(1, dims=1), labels, 1.0).total.item() > 0.5
    # The row that predicts nothing, the last, counts for nothing.
    changed = logits.clone()
    changed[:, -1] += torch.randn(5)
    assert teacher_logits(changed, logits, labels, 1.0).total.item() == pytest.approx(0, abs=1e-5)


def test_labels_that_are_all_ignored_give_zero_and_no_nan():
    logits = torch.randn(2, 4, 5, requires_grad=True)
    labels = torch.full((2, 4), IGNORED)
    for loss in (cross_entropy(logits, labels), teacher_logits(logits, logits.detach(), labels, 5.0)):
        assert (loss.total.item(), loss.tokens.item(), loss.mean.item()) == (0.0, 0, 0.0)
        (gradient,) = torch.autograd.grad(loss.total, logits)
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_bfloat16_logits_are_summed_in_float32():
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 2, 8, 40).bfloat16().unbind()
    labels = torch.randint(40, (2, 8))
    found = cross_entropy(logits, labels).total
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cross_entropy(logits.float(), labels).total)
    found = teacher_logits(logits, teacher, labels, 2.0).total
    torch.testing.assert_close(found, teacher_logits(logits.float(), teacher.float(), labels, 2.0).total)


def test_nothing_the_size_of_the_vocabulary_is_kept_for_the_backward_pass_but_the_logits():
    student = torch.randn(1, 64, 50, requires_grad=True)
    teacher, labels = torch.randn(1, 64, 50), torch.randint(50, (1, 64))
    kept = set()

    def keep(tensor):
        if tensor.numel() >= 8 * 50:
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = (
            teacher_logits(student, teacher, labels, 2.0, 8).total + cross_entropy(student, labels, 8).total
        )
    loss.backward()
    assert kept == {logits.untyped_storage().data_ptr() for logits in (student, teacher)}


class Counting:
    """An objective that counts its calls and says a fixed loss."""

    def __init__(self, total, tokens):
        self.calls = 0
        self.loss = TokenLoss(torch.tensor(total, requires_grad=True), torch.tensor(tokens))

    def __call__(self, _):
        self.calls += 1
        return self.loss


@pytest.fixture
def batch(make_model, sequences):
    return MicroBatch(make_model(), sequences, teacher=lambda ids: make_model(seed=1)(ids).logits.detach())


def test_the_total_is_the_weighted_sum_over_the_normaliser(batch):
    manager = ObjectiveManager({"a": Counting(6.0, 3), "b": Counting(10.0, 2)})
    loss = manager(batch, {"a": 0.5, "b": 2.0}, normaliser=4)
    assert loss.total.item() == pytest.approx((0.5 * 6 + 2 * 10) / 4)
    assert [(part.name, part.weight) for part in loss.parts] == [("a", 0.5), ("b", 2.0)]
    assert [part.raw.item() for part in loss.parts] == [2.0, 5.0]
    assert [part.weighted.item() for part in loss.parts] == [1.0, 10.0]
    assert not any(part.loss.total.requires_grad for part in loss.parts)


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 0.0}, {"a": 1.0}])
def test_an_objective_of_weight_0_or_not_named_never_runs(batch, weights):
    a, b = Counting(1.0, 1), Counting(math.nan, 1)
    loss = ObjectiveManager({"a": a, "b": b})(batch, weights, 1)
    assert (a.calls, b.calls) == (1, 0)
    assert loss.total.item() == 1.0


@pytest.mark.parametrize("weights", [{"crossEntropy": 1.0, "teacherLogits": 0.0}, {"crossEntropy": 1.0}])
def test_without_weight_the_teacher_is_not_asked_and_the_loss_is_plain_cross_entropy(
    make_model, sequences, weights
):
    def unwanted(_):
        raise AssertionError("the teacher was asked")

    batch = MicroBatch(make_model(), sequences, teacher=unwanted)
    manager = ObjectiveManager(
        {"crossEntropy": CrossEntropyObjective(), "teacherLogits": TeacherLogitsObjective(5.0)}
    )
    loss = manager(batch, weights, count_targets(sequences))
    assert torch.equal(
        loss.total, cross_entropy(batch.student_logits, sequences).total / count_targets(sequences)
    )


def test_distillation_without_a_teacher_is_an_error_and_not_a_plain_run(make_model, sequences):
    manager = ObjectiveManager(
        {"crossEntropy": CrossEntropyObjective(), "teacherLogits": TeacherLogitsObjective(5.0)}
    )
    with pytest.raises(TeacherUnavailable, match=r"no teacher is loaded.*spec\.teacher"):
        manager(MicroBatch(make_model(), sequences), {"crossEntropy": 1.0, "teacherLogits": 5.0}, 1)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 0.0}, "no objective has weight"),
        ({}, "no objective has weight"),
        ({"a": -1.0}, "-1.0; a weight is a number from 0 up"),
        ({"a": math.nan}, "nan; a weight"),
        ({"a": 1.0, "z": 0.0}, "'z' has weight 0.0 but this phase has no such objective; it has a"),
    ],
)
def test_bad_weights_are_named(batch, weights, message):
    with pytest.raises(BadInput, match=message):
        ObjectiveManager({"a": Counting(1.0, 1)})(batch, weights, 1)


def test_the_student_runs_once_for_all_objectives(make_model, sequences):
    student, calls = make_model(), []
    student.register_forward_hook(lambda *_: calls.append(1))
    batch = MicroBatch(student, sequences, teacher=lambda ids: make_model(seed=1)(ids).logits.detach())
    manager = ObjectiveManager(objectives_of(spec()))
    manager(batch, {"crossEntropy": 0.5, "teacherLogits": 5.0}, 1).total.backward()
    assert len(calls) == 1


def spec():
    return Objectives(
        cross_entropy=CrossEntropy(weight=0.5), teacher_logits=TeacherLogits(weight=5, temperature=3)
    )


def test_the_objectives_of_a_phase_are_those_it_names():
    assert objectives_of(spec())["teacherLogits"] == TeacherLogitsObjective(3.0)
    assert list(objectives_of(spec())) == ["crossEntropy", "teacherLogits"] == list(spec().weights())
    assert list(objectives_of(Objectives(cross_entropy=CrossEntropy(weight=1)))) == ["crossEntropy"]


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_micro_batches_add_up_to_the_whole_batch_whatever_their_lengths(make_model, sequences, rows):
    labels = sequences.clone()
    labels[0, 5:] = IGNORED
    labels[3, :] = IGNORED

    def gradient(split):
        model = make_model()
        manager = ObjectiveManager({"crossEntropy": CrossEntropyObjective()})
        losses = []
        for ids, part in zip(sequences.split(split), labels.split(split), strict=True):
            losses.append(manager(MicroBatch(model, ids, part), {"crossEntropy": 1.0}, count_targets(labels)))
            losses[-1].total.backward()
        (part,) = add_up(losses)
        assert part.loss.tokens == count_targets(labels)
        return part.raw, model.model.embed_tokens.weight.grad

    for found, expected in zip(gradient(rows), gradient(6), strict=True):
        torch.testing.assert_close(found, expected)
