"""hiddenStates: three distances, weights of layers, and models that cannot be compared."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from answering import SmallModel, assert_same, batch_of, few, gradients_of, rows_of, some_rows
from bitnet_trainer.answer import Capture
from bitnet_trainer.errors import BadInput, TeacherUnavailable
from bitnet_trainer.objectives.hidden_states import HiddenStatesObjective, hidden_states

DISTANCES = ["MeanSquared", "Normalized", "Cosine"]


def distance_of(s, t, distance):
    """Of two vectors, from the formula."""
    if distance == "Cosine":
        return 1 - (s @ t) / (s.norm() * t.norm())
    if distance == "Normalized":
        s, t = (x / (x @ x / len(x)).sqrt() for x in (s, t))
    return sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)


def twin(student, teacher, tokens, distance, weights):
    """Layer by layer, token by token."""
    total = torch.zeros((), dtype=torch.float64)
    for weight, own, goal in zip(weights, student, teacher, strict=True):
        for row, place in tokens.nonzero().tolist():
            apart = distance_of(own[row, place], goal[row, place].detach(), distance)
            total = total + weight / sum(weights) * apart
    return total


def states_of(model, rows):
    return model(rows.input_ids, None, Capture(hidden_states=True)).hidden_states


@few
@given(
    some_rows(),
    st.sampled_from(DISTANCES),
    st.sampled_from([[1, 1, 1, 1], [0, 2, 0, 0.5]]),
    st.sampled_from([1, 30, 10**6]),
)
def test_it_is_its_twin_whatever_the_chunks(rows, distance, weights, chunk):
    student, teacher = SmallModel(0), SmallModel(1)
    own, goal = states_of(student, rows), states_of(teacher, rows)
    loss = hidden_states(own, goal, rows.tokens, distance, weights, chunk)
    assert_same(loss.total, twin(own, goal, rows.tokens, distance, weights), student)
    assert loss.tokens == rows.tokens.sum()
    assert not any(gradient.any() for gradient in gradients_of(loss.total, teacher).values())


@pytest.mark.parametrize(
    ("layers", "stated", "weights"),
    [
        ("Uniform", None, [1, 1, 1, 1]),
        ("Progressive", None, [1, 2, 3, 4]),
        ("Uniform", (0.0, 0.0, 3.0, 1.0), [0, 0, 3, 1]),
    ],
)
def test_the_objective_weighs_layers_and_takes_the_teachers_at_the_same_depth(layers, stated, weights):
    """Of four layers here, and six there."""
    student, teacher, rows = SmallModel(0), SmallModel(1, layers=6), rows_of(7, 4)
    objective = HiddenStatesObjective("MeanSquared", layers, stated)
    loss = objective(batch_of(student, rows, objective, teacher))
    goal = [states_of(teacher, rows)[layer] for layer in (1, 2, 4, 5)]
    expected = twin(states_of(student, rows), goal, rows.tokens, "MeanSquared", weights)
    assert_same(loss.total, expected, student)
    assert loss.tokens == objective.count(rows) == 11


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("shift", [0, 1])
def test_a_student_that_is_its_teacher_has_no_loss_and_one_that_is_a_place_behind_has(distance, shift):
    model, rows = SmallModel(0), rows_of(9, 9)
    goal = states_of(model, rows)
    behind = [state.roll(shift, dims=1) for state in goal]
    loss = hidden_states(behind, goal, rows.tokens, distance, [1] * 4)
    largest = max(gradient.abs().max() for gradient in gradients_of(loss.total, model).values())
    assert (abs(loss.total) < 1e-12) == (largest < 1e-12) == (shift == 0)


@pytest.mark.parametrize("distance", ["Normalized", "Cosine"])
def test_the_length_of_a_vector_is_nothing_where_directions_are_compared(distance):
    torch.manual_seed(0)
    state, tokens = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    longer = 100 * torch.rand(2, 5, 1) + 0.01
    assert hidden_states([state], [longer * state], tokens, distance, [1]).total == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-7])
def test_a_vector_of_next_to_nothing_has_a_bounded_gradient(distance, who, size):
    torch.manual_seed(0)
    some, little = torch.randn(2, 1, 1, 8).unbind()
    little = little * size
    own, goal = {"student": (little, some), "teacher": (some, little), "both": (little, little)}[who]
    own = own.clone().requires_grad_()
    loss = hidden_states([own], [goal], torch.ones(1, 1, dtype=torch.bool), distance, [1]).total
    (gradient,) = torch.autograd.grad(loss, own)
    assert 0 <= loss < 5
    assert gradient.abs().max() < 5


@pytest.mark.parametrize("distance", DISTANCES)
def test_padding_does_not_count_and_alone_gives_zero(distance):
    torch.manual_seed(0)
    own, goal = torch.randn(2, 3, 5, 8).unbind()
    own.requires_grad_()
    for lengths in ((5, 0, 3), (0, 0, 0)):
        tokens = torch.arange(5) < torch.tensor(lengths)[:, None]
        loss = hidden_states([own], [goal], tokens, distance, [1])
        changed = hidden_states([torch.where(tokens[..., None], own, 9.0)], [goal], tokens, distance, [1])
        assert torch.equal(loss.total, changed.total)
        assert loss.tokens == sum(lengths)
        (gradient,) = torch.autograd.grad(loss.total, own)
        assert torch.equal(gradient.any(-1), tokens)


@pytest.mark.parametrize("distance", DISTANCES)
def test_bfloat16_is_summed_in_float32(distance):
    torch.manual_seed(0)
    own, goal = torch.randn(2, 2, 5, 64).bfloat16().unbind()
    tokens = torch.ones(2, 5, dtype=torch.bool)
    found = hidden_states([own], [goal], tokens, distance, [1]).total
    exact = hidden_states([own.double()], [goal.double()], tokens, distance, [1]).total
    torch.testing.assert_close(found, exact.float())


def test_weights_that_are_not_one_a_layer_are_named():
    objective = HiddenStatesObjective("Cosine", "Uniform", (1.0, 2.0))
    with pytest.raises(BadInput, match=r"2 layerWeights for the student's 4 layers; give each layer one"):
        objective.capture(4)


def test_states_of_other_sizes_are_named():
    objective = HiddenStatesObjective("MeanSquared", "Uniform", None)
    batch = batch_of(SmallModel(0), rows_of(4), objective, SmallModel(1, width=12))
    with pytest.raises(BadInput, match=r"student's have 8 numbers, the teacher's 12; name a teacher"):
        objective(batch)


def test_without_a_teacher_it_is_an_error():
    objective = HiddenStatesObjective("MeanSquared", "Uniform", None)
    with pytest.raises(TeacherUnavailable, match=r"no teacher is loaded.*spec\.teacher"):
        objective(batch_of(SmallModel(0), rows_of(4), objective))
