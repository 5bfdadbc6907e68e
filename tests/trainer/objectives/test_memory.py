"""Logits (B, S, V) never exist, nor relations of all heads: forward and backward, against dense twins."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from allocations import Allocations
from answering import CPU
from bitnet_trainer.answer import Answer, Capture, Projections
from bitnet_trainer.batch import Rows, SequenceId
from bitnet_trainer.objectives.attention_relations import attention_relations
from bitnet_trainer.objectives.block_attention import block_attention
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.objectives.hidden_states import hidden_states
from bitnet_trainer.objectives.masked_diffusion import MaskedDiffusionObjective
from bitnet_trainer.objectives.masking import Masking
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.teacher_logits import TeacherLogitsObjective
from bitnet_trainer.objectives.token_loss import CHUNK_TOKENS
from bitnet_trainer.objectives.top_k import top_k_of

ROWS, LENGTH, WIDTH, VOCABULARY, TOP = 20, 512, 4, 500, 8
LOGITS = ROWS * LENGTH * VOCABULARY
"""Elements of (B, S, V)."""


class Model(nn.Module):
    """An embedding and a head."""

    layers = 1

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids, *_):
        return Answer(self.embedding(input_ids), self.head)

    @torch.no_grad()
    def answer(self, rows, capture):
        return self(rows.input_ids, rows.attention_mask, capture)

    def top_k(self, _rows, answer, k, temperature):
        return top_k_of(answer().hidden, answer().head, k, temperature)


def text():
    ids = torch.randint(2, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    return Rows.of(ids, [SequenceId(0, 0, row) for row in range(ROWS)])


def logits_of(model, rows):
    answer = model(rows.input_ids, None, Capture())
    return answer.head(answer.hidden)[:, :-1]


def dense_cross_entropy(student, _, rows):
    return F.cross_entropy(logits_of(student, rows).flatten(0, 1), rows.input_ids[:, 1:].flatten())


def dense_divergence(student, teacher, rows):
    with torch.no_grad():
        goal = logits_of(teacher, rows).log_softmax(-1)
    return F.kl_div(logits_of(student, rows).log_softmax(-1), goal, log_target=True, reduction="sum")


def dense_top_k(student, teacher, rows):
    with torch.no_grad():
        goal = logits_of(teacher, rows).log_softmax(-1)
        top = goal.topk(TOP)
    own = logits_of(student, rows).log_softmax(-1).gather(-1, top.indices)
    return (top.values.exp() * (top.values - own)).sum()


def measured(total: Callable[[], torch.Tensor]) -> Allocations:
    """Of a loss and its gradient."""
    with Allocations() as found:
        total().backward()
    return found


@cache
def dense_peak(dense) -> int:
    """In bytes; of a twin that does hold logits (B, S, V)."""
    student, teacher, rows = Model(0), Model(1), text()
    found = measured(lambda: dense(student, teacher, rows))
    assert found.largest >= LOGITS * (LENGTH - 1) // LENGTH
    assert found.peak >= 2 * 4 * LOGITS
    return found.peak


MASKING = Masking(0.5, 1, "Independent", seed=0)


@pytest.mark.parametrize(
    ("objective", "dense", "ratio"),
    [
        pytest.param(CrossEntropyObjective(), dense_cross_entropy, 16, id="crossEntropy"),
        pytest.param(MaskedDiffusionObjective(MASKING), dense_cross_entropy, 16, id="maskedDiffusion"),
        pytest.param(TeacherLogitsObjective(1, None, "Bucket", None), dense_divergence, 16, id="all"),
        pytest.param(TeacherLogitsObjective(1, None, "Bucket", MASKING), dense_divergence, 16, id="masked"),
        pytest.param(TeacherLogitsObjective(1, TOP, "Bucket", None), dense_top_k, 8, id="bucket"),
        pytest.param(TeacherLogitsObjective(1, TOP, "Bucket", MASKING), dense_top_k, 8, id="masked bucket"),
        pytest.param(TeacherLogitsObjective(1, TOP, "Renormalized", None), dense_top_k, 12, id="top alone"),
    ],
)
def test_logits_are_held_for_one_chunk_of_tokens_in_20(objective, dense, ratio):
    student, teacher, rows = Model(0), Model(1), text()
    batch = MicroBatch(student, rows, CPU, layers=1, teacher=teacher)
    chunked = measured(lambda: objective(batch).total)
    assert student.head.weight.grad.any()
    assert chunked.largest == CHUNK_TOKENS * VOCABULARY == LOGITS // 20
    assert chunked.peak * ratio < dense_peak(dense)


def projections():
    torch.manual_seed(0)
    return Projections(*(torch.randn(4, 256, 32, requires_grad=True) for _ in range(3)))


def test_relations_are_held_for_one_head_at_a_time_in_48():
    """4 rows of 4 heads, of queries, keys and values each."""
    own, goal, tokens = projections(), projections(), torch.ones(4, 256, dtype=torch.bool)
    chunked = measured(lambda: attention_relations(own, goal, tokens, 4, chunk_elements=256**2).total)
    whole = measured(lambda: attention_relations(own, goal, tokens, 4, chunk_elements=2**30).total)
    assert chunked.largest == 256**2
    assert chunked.peak * 8 < whole.peak
    blocks = measured(lambda: block_attention(own, goal, tokens, 4, block_size=16, chunk_elements=4096).total)
    assert blocks.largest == own.queries.numel()


def test_hidden_states_are_compared_a_few_tokens_at_a_time():
    """What is held beside the gradients of four layers is little."""
    own = [torch.randn(4, 512, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(4)]
    goal, tokens = [torch.randn_like(state) for state in own], torch.ones(4, 512, dtype=torch.bool)
    size = own[0].numel() * 2
    chunked, whole = (
        measured(
            lambda elements=elements: hidden_states(own, goal, tokens, "Cosine", [1] * 4, elements).total
        )
        for elements in (64 * 64, 2**30)
    )
    assert chunked.peak < 5.5 * size
    assert whole.peak >= 12 * size


def test_what_is_freed_does_not_count():
    with Allocations() as found:
        kept = [torch.zeros(10) for _ in range(3)]
        for _ in range(5):
            torch.zeros(100).add_(1).view(10, 10).t()
    assert (found.peak, found.largest, len(kept)) == (4 * (30 + 100), 100, 3)
