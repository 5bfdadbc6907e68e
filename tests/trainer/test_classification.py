"""Objective `classification`: against a brute-force twin, wherever the padding is."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bitnet_trainer.answer import Answer, Capture
from bitnet_trainer.batch import IGNORED, Rows
from bitnet_trainer.errors import BadInput
from bitnet_trainer.last_token import at_last_token
from bitnet_trainer.objectives.classification import ClassificationObjective, classification_loss
from bitnet_trainer.objectives.micro_batch import MicroBatch

HIDDEN, LABELS = 5, 3


def twin(hidden: Tensor, weight: Tensor, tokens: Tensor, classes: Tensor) -> Tensor:
    """The sum in plain loops, with gradient."""
    total = hidden.new_zeros(())
    for row, label in enumerate(classes.tolist()):
        if label == IGNORED:
            continue
        last = max((place for place, real in enumerate(tokens[row].tolist()) if real), default=0)
        logits = [(weight[label_] * hidden[row, last]).sum() for label_ in range(LABELS)]
        total = total - logits[label] + torch.stack(logits).exp().sum().log()
    return total


def head(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(HIDDEN, LABELS, bias=False, dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.clone())
    return linear


masks = st.lists(
    st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5
)  # padding anywhere, and rows of nothing else


@given(mask=masks, seed=st.integers(0, 1000), data=st.data())
def test_value_and_gradient_are_the_twins(mask: list[list[bool]], seed: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor(mask)
    rows = len(mask)
    classes = torch.tensor(
        data.draw(
            st.lists(st.sampled_from([IGNORED, *range(LABELS)]), min_size=rows, max_size=rows), "classes"
        )
    )
    hidden = torch.randn(rows, 4, HIDDEN, generator=generator).double().requires_grad_()
    weight = torch.randn(LABELS, HIDDEN, generator=generator).double().requires_grad_()
    linear = head(weight.detach())
    loss = classification_loss(hidden, linear, tokens, classes)
    expected = twin(hidden, weight, tokens, classes)
    torch.testing.assert_close(loss.total, expected)
    assert int(loss.tokens) == sum(label != IGNORED for label in classes.tolist())
    found = torch.autograd.grad(loss.total, (hidden, linear.weight))
    if expected.requires_grad:
        for ours, theirs in zip(found, torch.autograd.grad(expected, (hidden, weight)), strict=True):
            torch.testing.assert_close(ours, theirs)
    else:
        assert all((gradient == 0).all() for gradient in found)


def test_a_batch_without_labels_to_learn_is_0_and_not_nan() -> None:
    hidden = torch.randn(2, 4, HIDDEN, requires_grad=True)
    loss = classification_loss(
        hidden,
        head(torch.randn(LABELS, HIDDEN)),
        torch.ones(2, 4, dtype=torch.bool),
        torch.full((2,), IGNORED),
    )
    assert (loss.total.item(), int(loss.tokens), loss.mean.item()) == (0, 0, 0)
    (gradient,) = torch.autograd.grad(loss.total, hidden)
    assert (gradient == 0).all()


def test_what_stands_in_padding_changes_nothing() -> None:
    tokens = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]]).bool()
    hidden = torch.randn(2, 4, HIDDEN)
    torch.testing.assert_close(at_last_token(hidden, tokens), torch.stack((hidden[0, 3], hidden[1, 1])))
    other = hidden.masked_fill(~tokens[..., None], math.inf)
    assert torch.equal(at_last_token(other, tokens), at_last_token(hidden, tokens))


def test_short_types_are_summed_in_float32() -> None:
    loss = classification_loss(
        torch.randn(2, 4, HIDDEN).bfloat16(),
        head(torch.randn(LABELS, HIDDEN).bfloat16()),
        torch.ones(2, 4, dtype=torch.bool),
        torch.tensor([0, 1]),
    )
    assert loss.total.dtype == torch.float32


def test_the_objective_asks_the_student_once_and_counts_rows() -> None:
    asked = []
    hidden, linear = torch.randn(2, 4, HIDDEN), head(torch.randn(LABELS, HIDDEN))

    def student(
        input_ids: Tensor,
        attention_mask: Tensor | None,
        capture: Capture,
        position_ids: Tensor | None,
        documents: Tensor | None,
    ) -> Answer:
        assert position_ids is documents is None
        asked.append((input_ids.shape, attention_mask, capture))
        return Answer(hidden=hidden, head=linear)

    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    ids = torch.zeros(2, 4, dtype=torch.long)
    rows = Rows(input_ids=ids, labels=ids, attention_mask=mask, classes=torch.tensor([IGNORED, 2]))
    objective = ClassificationObjective()
    assert objective.capture(12) == Capture()
    assert objective.count(rows) == 1
    loss = objective(MicroBatch(student, rows, torch.device("cpu")))
    assert int(loss.tokens) == 1
    assert loss.total.item() == pytest.approx(
        -linear(hidden[1, 3]).double().log_softmax(-1)[2].item(), rel=1e-5
    )
    assert asked == [(ids.shape, mask, Capture())]


def test_rows_without_labels_are_refused() -> None:
    rows = Rows.of(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(BadInput, match="no labels to classify by"):
        ClassificationObjective().count(rows)
