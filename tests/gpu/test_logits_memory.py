"""Objectives over Qwen3's vocabulary on CUDA: memory and time against the same with logits held whole."""

import statistics
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnet_trainer.answer import Answer
from bitnet_trainer.batch import IGNORED
from bitnet_trainer.objectives.cross_entropy import cross_entropy_of
from bitnet_trainer.objectives.teacher_logits import teacher_logits, teacher_top_k
from bitnet_trainer.objectives.top_k import top_k_of

pytestmark = pytest.mark.gpu

ROWS, LENGTH, WIDTH, VOCABULARY, TOP = 4, 2048, 1024, 151_936, 100
REPETITIONS = 5


class Side:
    """Hidden states that have a gradient, and the head that reads them; of one model."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.hidden = torch.randn(ROWS, LENGTH, WIDTH, device="cuda", requires_grad=True)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False, device="cuda")

    @property
    def answer(self) -> Answer:
        return Answer(self.hidden, self.head)

    def logits(self) -> Tensor:
        return self.head(self.hidden)[:, :-1].float()


def dense_cross_entropy(student: Side, _: Side, labels: Tensor) -> Tensor:
    return F.cross_entropy(
        student.logits().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def dense_logits(student: Side, teacher: Side, _: Tensor) -> Tensor:
    with torch.no_grad():
        goal = teacher.logits().log_softmax(-1)
    return F.kl_div(student.logits().log_softmax(-1), goal, log_target=True, reduction="sum")


def dense_top_k(student: Side, teacher: Side, _: Tensor) -> Tensor:
    with torch.no_grad():
        top = teacher.logits().log_softmax(-1).topk(TOP)
    own = student.logits().log_softmax(-1).gather(-1, top.indices)
    tails = [torch.log1p(-logs.exp().sum(-1).clamp(max=1 - 1e-6)) for logs in (top.values, own)]
    inside = (top.values.exp() * (top.values - own)).sum()
    return inside + (tails[0].exp() * (tails[0] - tails[1])).sum()


def own_cross_entropy(student: Side, _: Side, labels: Tensor) -> Tensor:
    return cross_entropy_of(student.hidden, student.head, labels).total


def own_logits(student: Side, teacher: Side, labels: Tensor) -> Tensor:
    return teacher_logits(student.answer, teacher.answer, labels, 1.0).total


def own_top_k(student: Side, teacher: Side, labels: Tensor) -> Tensor:
    top = top_k_of(teacher.hidden, teacher.head, TOP, 1.0)
    return teacher_top_k(student.answer, top, labels, 1.0, "Bucket").total


Loss = Callable[[Side, Side, Tensor], Tensor]


def measured(loss: Loss, sides: tuple[Side, Side], labels: Tensor) -> tuple[float, float, float]:
    """The loss, its peak memory in GiB beyond what was there, its median time in ms; backward included."""
    times, value = [], 0.0
    for _ in range(REPETITIONS + 1):
        for side in sides:
            side.hidden.grad = side.head.weight.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            total = loss(*sides, labels)
        total.backward()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
        peak = (torch.cuda.max_memory_allocated() - before) / 2**30
        value = total.item()
    return value, peak, statistics.median(times[1:])


@pytest.mark.parametrize(
    ("own", "dense"),
    [
        pytest.param(own_cross_entropy, dense_cross_entropy, id="crossEntropy"),
        pytest.param(own_logits, dense_logits, id="teacherLogits"),
        pytest.param(own_top_k, dense_top_k, id="teacherLogits, topK 100"),
    ],
)
def test_logits_are_never_held_whole(own: Loss, dense: Loss, request: pytest.FixtureRequest) -> None:
    sides = Side(0), Side(1)
    labels = torch.randint(VOCABULARY, (ROWS, LENGTH), device="cuda")
    expected, dense_peak, dense_time = measured(dense, sides, labels)
    found, peak, time = measured(own, sides, labels)
    print(
        f"\n{request.node.callspec.id}: {peak:.2f} GiB against {dense_peak:.2f}, "
        f"{time:.0f} ms against {dense_time:.0f}"
    )
    assert found == pytest.approx(expected, rel=1e-2)
    assert peak < dense_peak / 5
