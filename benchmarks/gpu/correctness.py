"""What is learned by int8 products against fake-quant's: the same start, the same text, the same steps."""

import argparse
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from unittest.mock import patch

import torch
from shapes import SHAPES, Shape
from step import DEVICE, heading
from timing import free
from torch import Tensor
from trainer_step import TrainerStep, alone

from bitnet_trainer.batch import Rows
from bitnet_trainer.models import view
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.cross_entropy import cross_entropy_of
from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.step import autocast

RATE = 1e-3
WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; then it falls to 0 along a cosine."""
LAST = 20
"""Steps whose losses are averaged."""
HELD_OUT = 64
"""Rows at the text's end that no case trains on."""
BYTES = 256


@dataclass(frozen=True)
class Case:
    """One way to train."""

    int8: bool = True
    """Whether products are of codes; else they are bfloat16's, of values rounded to what codes stand for."""
    int8_backward: bool = True
    """Whether tokens' gradients are products of codes, too."""
    compiled: bool = True
    long_residual: bool = False
    """Whether what layers add to is held in float32."""


CASES: Mapping[str, Case] = MappingProxyType(
    {
        "fake-quant, eager, float32 residual": Case(int8=False, compiled=False, long_residual=True),
        "int8 (ours)": Case(),
        "fake-quant, layers compiled, float32 residual": Case(int8=False, long_residual=True),
        "int8 forward alone": Case(int8_backward=False),
    }
)


def text_rows(path: Path, sequence: int) -> Tensor:
    """(rows, sequence) int64: the file's bytes, its end cut off."""
    found = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).long()
    return found[: len(found) // sequence * sequence].view(-1, sequence)


def share(step: int, steps: int) -> float:
    """Of the learning rate, at a step from 0."""
    rising = max(1, round(WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@dataclass(frozen=True)
class Course:
    """What every case trains."""

    shape: Shape
    rows: Tensor
    """(rows, sequence) int64; the last HELD_OUT are not trained on."""
    batch: int
    steps: int


def trained(case: Case, course: Course, seed: int) -> tuple[float, float]:
    """Mean loss of the last steps, and of the held-out rows, read in the order of that seed; nats a byte."""
    rows, batch, steps = course.rows, course.batch, course.steps
    model = course.shape.build(DEVICE)
    convert(model)
    linears = [module for module in model.modules() if isinstance(module, BitLinear)]
    for linear in linears:
        linear.int8_backward = case.int8_backward
    student = LanguageModel(model).train()
    on_cuda = DEVICE.type == "cuda"
    if case.compiled and on_cuda:
        student.compile_layers(replayed=True)
    trainer = TrainerStep.of(student, alone(DEVICE), rate=RATE)
    order = torch.randperm(len(rows) - HELD_OUT, generator=torch.Generator().manual_seed(seed))
    losses = []
    for step in range(steps):
        places = [order[(step * batch + each) % len(order)] for each in range(batch)]
        asked = trainer.asked([Rows.of(rows[torch.stack(places)])])
        losses.append(trainer.take(asked, share=share(step, steps)))
        assert linears[0].lam.kernels or not on_cuda, "these are no products of codes"
    assert not trainer.stepper.guard.counts().any(), "a step was left out"
    return torch.stack(losses[-LAST:]).mean().item(), _held_out(student, rows[-HELD_OUT:], batch)


@torch.no_grad()
def _held_out(student: LanguageModel, rows: Tensor, batch: int) -> float:
    totals = []
    for some in torch.split(rows.to(DEVICE), batch):
        student.begin_pass()
        with autocast(DEVICE):
            answer = student(some)
            totals.append(cross_entropy_of(answer.hidden, answer.head, some))
    return (sum(each.total for each in totals) / sum(each.tokens for each in totals)).item()  # type: ignore[union-attr]


@contextmanager
def _products(case: Case) -> Iterator[None]:
    """Inside, layers multiply as the case says."""
    never: Callable[..., bool] = lambda _self, _x: False  # noqa: E731
    with ExitStack() as inside:
        if not case.int8:
            inside.enter_context(patch.object(BitLinear, "_by_codes", never))
        if case.long_residual:
            inside.enter_context(patch.object(view, "dtype_of_products", lambda x: x.dtype))
        yield


def compared(found: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Markdown: the means over all orders and how far from the first case's, order by order, each with its
    standard error."""
    lines = ["| case | last steps | against the first | held out | against the first |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    first = next(iter(found.values()))
    for name, losses in found.items():
        cells = []
        for own, theirs in zip(zip(*losses, strict=True), zip(*first, strict=True), strict=True):
            more = [one / other - 1 for one, other in zip(own, theirs, strict=True)]
            cells.append(f"{statistics.mean(own):.4f} +- {_standard_error(own):.4f}")
            cells.append(f"{statistics.mean(more):+.2%} +- {_standard_error(more):.2%}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="a file to learn, byte by byte")
    parser.add_argument("--shape", choices=SHAPES, default="135M", help="but for its vocabulary: bytes")
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--orders", nargs="+", type=int, default=[0], help="seeds of the rows' order: how far chance goes"
    )
    options = parser.parse_args()
    rows = text_rows(options.text, options.sequence)
    shape = replace(SHAPES[options.shape], vocabulary=BYTES)
    course = Course(shape, rows, options.batch, options.steps)
    print(heading())
    print(
        f"\n{options.shape}'s layers, {options.steps} steps of {options.batch} x {options.sequence} bytes of "
        f"{options.text.name}, lambda 1 from the first on; loss in nats a byte\n"
    )
    print(f"| case | order | mean of the last {LAST} steps | held out |")
    print("| --- | ---: | ---: | ---: |")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in options.cases}
    for seed, name in itertools.product(options.orders, options.cases):
        torch._dynamo.reset()
        with _products(CASES[name]):
            last, held_out = trained(CASES[name], course, seed)
        found[name].append((last, held_out))
        print(f"| {name} | {seed} | {last:.4f} | {held_out:.4f} |", flush=True)
        free()
    if len(options.orders) > 1:
        print("\n" + compared(found))


if __name__ == "__main__":
    main()
