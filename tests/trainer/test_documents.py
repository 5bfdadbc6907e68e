"""Documents that share a row and see nothing of each other: as if each were alone."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet_trainer.answer import Capture
from bitnet_trainer.batch import IGNORED, Rows, SequenceId
from bitnet_trainer.data import Corpus, Cursor
from bitnet_trainer.data.packing import pack
from bitnet_trainer.models.attention_logits import LargestLogits
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.objectives.masked_diffusion import MaskedDiffusionObjective
from bitnet_trainer.objectives.masking import Masking
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.teacher_logits import TeacherLogitsObjective
from bitnet_trainer.teacher import Teacher
from families import ARCHITECTURES, small_model
from measuring import perplexity

EOS, MASK = 1, 60
CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Some of the models compute a part in float32, whatever they are in."""
CAUSAL = [name for name in ARCHITECTURES if not name.endswith("Classification")]


def text(*lengths, seed=0):
    """Documents of so many tokens, the end-of-text token included, one after the other, (sum,)."""
    draw = torch.Generator().manual_seed(seed)
    parts = [
        torch.cat((torch.randint(2, 60, (n - 1,), generator=draw), torch.tensor([EOS]))) for n in lengths
    ]
    return torch.cat(parts)


ROWS = torch.stack((text(5, 1, 7, 3), text(16, seed=1), text(1, 1, 9, 5, seed=2)))
"""(3, 16); the second is one document."""
DOCUMENTS = [
    (row, begin, end)
    for row, ends in enumerate(((5, 6, 13, 16), (16,), (1, 2, 11, 16)))
    for begin, end in zip((0, *ends[:-1]), ends, strict=True)
]


def rows_of(tokens):
    ids = tuple(SequenceId(0, 0, index) for index in range(len(tokens)))
    return Rows.of_documents(tokens, EOS, ids)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_positions_begin_anew_after_each_end_and_what_begins_is_not_predicted(tokens):
    place, expected = 0, []
    for token in tokens:
        expected.append(place)
        place = 0 if token == EOS else place + 1
    rows = Rows.of_documents(torch.tensor([tokens]), EOS)
    assert rows.position_ids.tolist() == [expected]
    assert rows.labels.tolist() == [
        [token if at else IGNORED for token, at in zip(tokens, expected, strict=True)]
    ]
    assert rows.attention_mask is None


def test_rows_keep_their_positions_when_they_are_taken_and_masked():
    rows = rows_of(ROWS)
    assert torch.equal(rows[1:].position_ids, rows.position_ids[1:])
    assert torch.equal(rows.to(CPU).position_ids, rows.position_ids)
    masked = Masking(0.5, MASK, "Complementary", 0)(rows)
    assert torch.equal(masked.position_ids, torch.cat((rows.position_ids, rows.position_ids)))
    assert not (masked.input_ids == MASK)[masked.position_ids == 0].any()


@pytest.fixture(params=[*CAUSAL, "sliding Gemma3ForCausalLM"])
def model(request):
    """The last one's layers see 4 tokens back."""
    name = request.param.removeprefix("sliding ")
    return small_model(name, **({"sliding_window": 4} if name != request.param else {})).double()


def test_logits_of_a_packed_row_are_those_of_each_document_alone(model):
    view = LanguageModel(model)
    rows = rows_of(ROWS)
    with torch.no_grad():
        answer = view(rows.input_ids, None, Capture(), rows.position_ids)
        packed = answer.head(answer.hidden)
        joined = view(rows.input_ids)
        for row, begin, end in DOCUMENTS:
            alone = view(ROWS[row : row + 1, begin:end])
            torch.testing.assert_close(packed[row, begin:end], view.head(alone.hidden)[0], **CLOSE)
        assert not torch.allclose(joined.hidden[0, 5:], answer.hidden[0, 5:], atol=1e-3), (
            "else it shows nothing"
        )


def test_loss_and_gradient_are_the_sum_over_documents_alone(model):
    def gradient(parts):
        model.zero_grad()
        losses = [CrossEntropyObjective()(MicroBatch(LanguageModel(model), rows, CPU)) for rows in parts]
        total = sum(loss.total for loss in losses)
        total.backward()
        return (
            total.detach(),
            sum(loss.tokens for loss in losses),
            model.get_input_embeddings().weight.grad.clone(),
        )

    packed = gradient([rows_of(ROWS)])
    alone = gradient([Rows.of(ROWS[row : row + 1, begin:end]) for row, begin, end in DOCUMENTS])
    assert packed[1] == alone[1] == sum(end - begin - 1 for _, begin, end in DOCUMENTS)
    for one, other in zip(packed, alone, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_perplexity_is_of_documents_alone():
    model = small_model().double()
    found = perplexity(model, rows_of(ROWS), batch_size=2)
    alone = [perplexity(model, ROWS[r : r + 1, b:e]) for r, b, e in DOCUMENTS if e - b > 1]
    assert found.tokens == sum(part.tokens for part in alone)
    logs = sum(part.tokens * np.log(part.value) for part in alone)
    assert found.value == pytest.approx(np.exp(logs / found.tokens))
    assert perplexity(model, ROWS).value != pytest.approx(found.value)


def changed_before(row, begin):
    """The rows, with all tokens of one of them before `begin` others, but for the ends."""
    other = ROWS.clone()
    before = other[row, :begin]
    before[before != EOS] = (before[before != EOS] + 7) % 50 + 2
    return rows_of(other)


@pytest.mark.parametrize("objective", ["masked", "teacher"])
def test_masked_diffusion_and_teacher_see_nothing_of_other_documents(objective):
    """The loss of a row's last document does not depend on what stands before it."""
    view = LanguageModel(small_model().double())
    teacher = Teacher("", None, 61, CPU)
    teacher._view = LanguageModel(small_model(seed=1).double())
    asked = (
        MaskedDiffusionObjective(Masking(0.7, MASK, "Independent", 0))
        if objective == "masked"
        else TeacherLogitsObjective(1.0, None, "Bucket", None)
    )

    def loss(rows):
        last = rows.labels.clone()
        last[1:], last[0, :6] = IGNORED, IGNORED
        return asked(MicroBatch(view, replace(rows, labels=last), CPU, teacher=teacher)).mean

    first, second = loss(rows_of(ROWS)), loss(changed_before(0, 6))
    assert first > 0
    torch.testing.assert_close(first, second)
    joined = replace(rows_of(ROWS), position_ids=None), replace(changed_before(0, 6), position_ids=None)
    assert not torch.allclose(loss(joined[0]), loss(joined[1]))


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3ForCausalLM", "BitNetLlama"])
def test_the_largest_attention_logits_are_those_of_documents_alone(architecture):
    """QK-clip must not bound a pair of tokens that never meet."""
    model = small_model(architecture).train()
    largest, view = LargestLogits(model), LanguageModel(model)
    for row, begin, end in DOCUMENTS:
        view(ROWS[row : row + 1, begin:end])
    alone = largest.values.clone()
    largest.forget()
    rows = rows_of(ROWS)
    view(rows.input_ids, None, Capture(), rows.position_ids)
    torch.testing.assert_close(largest.values, alone)


def test_a_corpus_of_separate_documents_says_where_they_begin_and_is_another():
    source = pack("books", text(*([5, 1, 7, 3] * 10)).numpy().astype(np.uint32), 8, Fraction(1, 5))
    joined = Corpus((source,), (1.0,), 0)
    separate = replace(joined, end_of_text=EOS)
    batch, _ = separate.take(Cursor.at_start(1), 4, (1.0,))
    for rows in (separate.rows(batch), separate.held_out(), next(separate.micro_batches(batch, 0, 1, 2))):
        expected = Rows.of_documents(rows.input_ids, EOS, rows.ids)
        assert torch.equal(rows.position_ids, expected.position_ids)
        assert torch.equal(rows.labels, expected.labels)
    assert joined.rows(batch).position_ids is None
    assert joined.fingerprint() != separate.fingerprint()


@pytest.mark.parametrize("length", [2, 7, 8])
def test_made_up_rows_have_two_documents_so_that_attention_is_masked(length):
    """Of a row with one, no mask is made, and it takes less memory."""
    source = pack("books", np.full(80, 5, np.uint32), length, Fraction(1, 5))
    rows = Corpus((source,), (1.0,), 0, end_of_text=EOS).made_up(3)
    assert rows.input_ids.shape == (3, length)
    assert [(row == 0).sum().item() for row in rows.position_ids] == [2] * 3
    assert source.training(0).tolist() == [5] * length
