"""The manager: objectives of weight run and add up; those without leave no trace."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from bitnet_crds.objectives import Objectives
from bitnet_trainer.answer import Answer, Capture
from bitnet_trainer.batch import Rows, SequenceId
from bitnet_trainer.errors import BadInput, TeacherUnavailable
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.manager import HEAD_READERS, ObjectiveManager, add_up, objectives_of
from bitnet_trainer.objectives.micro_batch import MicroBatch

MASK = 60
CPU = torch.device("cpu")


def manager(**named: dict[str, object]) -> ObjectiveManager:
    wanted = Objectives.model_validate(named)
    return ObjectiveManager(objectives_of(wanted.named(), key_heads=2, mask_tokens={"": MASK}, seed=0))


def rows_of(sequences: Tensor) -> Rows:
    return Rows.of(sequences, [SequenceId(0, 0, index) for index in range(len(sequences))])


class Counted(torch.nn.Module):
    """A student that remembers what it was asked."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.view = LanguageModel(model)
        self.asked: list[Tensor] = []

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        capture: Capture,
        position_ids: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Answer:
        self.asked.append(input_ids)
        answer: Answer = self.view(input_ids, attention_mask, capture, position_ids, documents)
        return answer


@pytest.fixture
def student(make_model) -> Counted:
    return Counted(make_model())


def total(student: Counted, rows: Rows, weights: dict[str, float], **named: dict[str, object]) -> Tensor:
    objectives = manager(**named)
    counts = objectives.count([rows], weights)
    normalisers = {name: float(count) for name, count in counts.items()}
    return objectives(MicroBatch(student, rows, CPU, layers=2), weights, normalisers).total


def plain_cross_entropy(student: Counted, sequences: Tensor) -> Tensor:
    logits = student.view.model(input_ids=sequences).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), sequences[:, 1:].flatten())


def test_cross_entropy_is_the_plain_one(student: Counted, sequences: Tensor) -> None:
    loss = total(student, rows_of(sequences), {"crossEntropy": 0.25}, crossEntropy={"weight": 0.25})
    torch.testing.assert_close(loss, 0.25 * plain_cross_entropy(student, sequences))


@pytest.mark.parametrize("listed", [True, False], ids=["at weight 0", "not named"])
def test_masking_leaves_no_trace_where_it_has_no_weight(
    student: Counted, sequences: Tensor, listed: bool
) -> None:
    """Trap 5: the input was masked although its objective had no weight, or the phase did not name it."""
    rows = rows_of(sequences)
    plain = total(student, rows, {"crossEntropy": 1.0}, crossEntropy={"weight": 1})
    student.asked.clear()
    named = {"crossEntropy": {"weight": 1}} | ({"maskedDiffusion": {"weight": 0}} if listed else {})
    weights = {"crossEntropy": 1.0} | ({"maskedDiffusion": 0.0} if listed else {})
    loss = total(student, rows, weights, **named)
    assert torch.equal(loss, plain)
    (asked,) = student.asked
    assert torch.equal(asked, sequences)


def test_the_old_behaviour_would_be_seen(student: Counted, sequences: Tensor) -> None:
    """What trap 5 did: cross-entropy of masked input is another number altogether."""
    masked = sequences.masked_fill(torch.rand(sequences.shape) < 0.5, MASK)
    logits = student.view.model(input_ids=masked).logits
    wrong = F.cross_entropy(logits[:, :-1].flatten(0, 1), sequences[:, 1:].flatten())
    assert abs(wrong - plain_cross_entropy(student, sequences)) > 0.01


def test_each_sees_its_own_input(student: Counted, sequences: Tensor) -> None:
    """In one phase cross-entropy sees the text, and masked diffusion a masked copy."""
    rows = rows_of(sequences)
    before = sequences.clone()
    total(
        student,
        rows,
        {"crossEntropy": 1.0, "maskedDiffusion": 1.0},
        crossEntropy={"weight": 1},
        maskedDiffusion={"weight": 1},
    )
    clean, masked = student.asked
    assert torch.equal(clean, before)
    assert torch.equal(rows.input_ids, before)
    assert (masked == MASK).any()


def test_parts_add_up_to_the_total(student: Counted, sequences: Tensor) -> None:
    rows = rows_of(sequences)
    named = {"crossEntropy": {"weight": 1}, "maskedDiffusion": {"weight": 1}}
    objectives = manager(**named)
    weights = {"crossEntropy": 0.3, "maskedDiffusion": 0.7}
    normalisers = {name: float(n) for name, n in objectives.count([rows], weights).items()}
    found = objectives(MicroBatch(student, rows, CPU, layers=2), weights, normalisers)
    torch.testing.assert_close(found.total, sum(part.weighted for part in found.parts))
    assert [part.name for part in found.parts] == list(weights)
    assert all(not part.loss.total.requires_grad for part in found.parts)
    assert {part.name: int(part.loss.tokens) for part in found.parts} == objectives.count([rows], weights)


def test_every_term_weighs_the_same_however_micro_batches_are_cut(
    student: Counted, sequences: Tensor
) -> None:
    """Masked tokens are few and uneven: a mean of the micro batches' means would be another loss."""
    whole = rows_of(sequences)
    named = {"crossEntropy": {"weight": 1}, "maskedDiffusion": {"weight": 1, "maskProbability": 0.2}}
    weights = {"crossEntropy": 1.0, "maskedDiffusion": 1.0}
    objectives = manager(**named)
    normalisers = {name: float(n) for name, n in objectives.count([whole], weights).items()}

    def cut(*sizes: int) -> Tensor:
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        pieces = [whole[a:b] for a, b in pairwise(ends)]
        assert objectives.count(pieces, weights) == {name: int(n) for name, n in normalisers.items()}
        losses = [
            objectives(MicroBatch(student, piece, CPU, layers=2), weights, normalisers) for piece in pieces
        ]
        merged = {part.name: float(part.raw) for part in add_up(losses)}
        whole_loss = torch.stack([loss.total for loss in losses]).sum()
        torch.testing.assert_close(whole_loss.item(), sum(merged.values()))
        return whole_loss

    torch.testing.assert_close(cut(6), cut(1, 5))
    torch.testing.assert_close(cut(6), cut(2, 1, 3))


def test_a_step_without_a_term_has_loss_0(student: Counted) -> None:
    """Trap 6: rows of two tokens have none that may be masked."""
    rows = rows_of(torch.tensor([[5, 6], [7, 8]]))
    loss = total(student, rows, {"maskedDiffusion": 1.0}, maskedDiffusion={"weight": 1})
    assert loss.item() == 0
    loss.backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() and not gradient.any() for gradient in gradients)


def test_captures_are_those_of_objectives_with_weight() -> None:
    objectives = manager(
        crossEntropy={"weight": 1},
        hiddenStates={"weight": 1},
        attentionRelations={"weight": 1, "layer": 1},
        blockAttention={"weight": 1},
    )
    nothing = {"crossEntropy": 1.0, "hiddenStates": 0.0, "attentionRelations": 0.0}
    assert objectives.capture(nothing, layers=8) == Capture()
    some = {"attentionRelations": 1.0, "blockAttention": 0.5, "hiddenStates": 0.1}
    assert objectives.capture(some, layers=8) == Capture(True, frozenset({1, 6}))


def test_head_readers_are_those_whose_gradient_reaches_the_head(student: Counted, sequences: Tensor) -> None:
    head = student.view.model.get_output_embeddings().weight
    for name in ("crossEntropy", "maskedDiffusion"):
        student.zero_grad()
        total(student, rows_of(sequences), {name: 1.0}, **{name: {"weight": 1}}).backward()
        assert head.grad.any()
        assert name in HEAD_READERS


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"crossEntropy": -1.0}, "from 0 up"),
        ({"crossEntropy": float("nan")}, "from 0 up"),
        ({"crossEntropy": 1.0, "hiddenStates": 1.0}, "no such objective"),
        ({"crossEntropy": 0.0}, "give one a weight"),
        ({}, "give one a weight"),
    ],
)
def test_weights_that_make_no_sense(
    student: Counted, sequences: Tensor, weights: dict[str, float], message: str
) -> None:
    objectives = manager(crossEntropy={"weight": 1})
    batch = MicroBatch(student, rows_of(sequences), CPU, layers=2)
    with pytest.raises(BadInput, match=message):
        objectives(batch, weights, {"crossEntropy": 1.0})


@pytest.mark.parametrize("name", ["teacherLogits", "attentionRelations", "blockAttention", "hiddenStates"])
def test_no_teacher_no_distillation(student: Counted, sequences: Tensor, name: str) -> None:
    """Trap 7: an objective that asks a teacher that is not there raises; it is never left out in silence."""
    with pytest.raises(TeacherUnavailable, match="no teacher is loaded"):
        total(student, rows_of(sequences), {name: 1.0}, **{name: {"weight": 1}})
