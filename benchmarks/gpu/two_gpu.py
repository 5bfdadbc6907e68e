"""A step of ours on several GPUs: the model whole on each (DDP) or in parts (FSDP2), against one GPU alone.

torchrun --nproc-per-node 2 benchmarks/gpu/two_gpu.py
"""

import argparse
import faulthandler
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from cases import RATE
from shapes import SHAPES, Shape
from step import heading
from timing import free, timed
from torch import Tensor
from trainer_step import TrainerStep

from bitnet_trainer.batch import Rows
from bitnet_trainer.models.attention import prefer
from bitnet_trainer.models.attention_backends import AttentionShape, fastest
from bitnet_trainer.models.attention_backends import measure as measure_attention
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.codes import quantize_weights
from bitnet_trainer.quantization.int8_training import PackedCodes
from bitnet_trainer.quantization.packing import unpack_ternary
from bitnet_trainer.quantization.warmup import set_lambda
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.sharding import called_directly, shard
from bitnet_trainer.step import StepInput

ALONE = "one GPU"
TAKEN = ("all_gather_into_tensor", "all_gather_single"), ("reduce_scatter_tensor", "reduce_scatter_single")
"""Functions of torch.distributed that FSDP2 gathers and reduces by, under torch 2.11's names and 2.15's."""


@dataclass
class Measured:
    """One case's figures; bytes and memory are a GPU's, the most of all."""

    seconds: float
    """A step, the median of the blocks on the slowest rank."""
    peak: int
    """Most bytes held, CUDA graphs and free blocks included."""
    gathered: int
    """Bytes that all-gathers bring to a GPU from the others in a step."""
    reduced: int
    """Bytes of gradients that a GPU sends to the others in a step."""
    loss: float
    """After the same number of steps in each case."""


@dataclass
class Sent:
    """Bytes that a rank exchanges with the others, by what FSDP2 asks of torch.distributed."""

    gathered: int = 0
    reduced: int = 0


@contextmanager
def counted(world: int) -> Iterator[Sent]:
    """Inside, collectives are counted as they are asked for, whatever sends them."""
    sent = Sent()
    others = (world - 1) / world
    kept: dict[str, Callable[..., Any]] = {}

    def counting(name: str, gathers: bool) -> Callable[..., Any]:
        function = kept[name]

        def called(*args: Any, **kwargs: Any) -> Any:
            tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
            whole = round(max(each.nbytes for each in tensors) * others)
            if gathers:
                sent.gathered += whole
            else:
                sent.reduced += whole
            return function(*args, **kwargs)

        return called

    for gathers, names in zip((True, False), TAKEN, strict=True):
        for name in names:
            if hasattr(dist, name):
                kept[name] = getattr(dist, name)
                setattr(dist, name, counting(name, gathers))
    try:
        yield sent
    finally:
        for name, function in kept.items():
            setattr(dist, name, function)


def whole(_student: LanguageModel, _ranks: Ranks) -> None:
    """Each rank has all of the model."""


def sharded(student: LanguageModel, ranks: Ranks, *, packed: bool) -> None:
    """Each rank has a part of it."""
    # As the training loop has it: sharding takes a forward pass.
    set_lambda(student, 1.0)
    shard(student, ranks, packed=packed)


@dataclass(frozen=True)
class Case:
    """How a model is spread over the ranks."""

    spread: Callable[[LanguageModel, Ranks], None]
    replayed: bool = False
    """Whether its layers are CUDA graphs."""


CASES: Mapping[str, Case] = {
    ALONE: Case(whole, replayed=True),
    "DDP": Case(whole, replayed=True),
    "DDP, not replayed": Case(whole),
    "FSDP2, float32 gathered": Case(partial(sharded, packed=False)),
    "FSDP2, codes gathered": Case(partial(sharded, packed=True)),
}


@dataclass(frozen=True)
class Work:
    """What every case of a table does."""

    shape: Shape
    tokens: Tensor
    """This rank's of each step, (B, S + 1) on the CPU."""
    attention: str | None
    """The kernel that attends fastest, which all ranks take; None is torch's choice."""


@dataclass(frozen=True)
class Steps:
    """A model in training, and the step that it takes again and again."""

    trainer: TrainerStep
    asked: StepInput

    def take(self) -> Tensor:
        """Takes one, and gives its loss, 0-dim on the device."""
        return self.trainer.take(self.asked)

    @property
    def by_ddp(self) -> int:
        """Bytes of gradients that DDP reduces."""
        student = self.trainer.student
        if self.trainer.stepper.model is student:
            return 0
        return sum(each.nbytes for each in student.parameters())


def stepping(case: Case, work: Work, ranks: Ranks, options: argparse.Namespace) -> Steps:
    """The steps of one case."""
    model = work.shape.build(ranks.device)
    convert(model)
    model.to(ranks.device)
    student = LanguageModel(model).train()
    case.spread(student, ranks)
    prefer(model, work.attention)
    if not options.eager:
        student.compile_layers(replayed=case.replayed and ranks.device.type == "cuda")
    trainer = TrainerStep.of(student, ranks, rate=RATE)
    rows = [Rows.of(part[:, :-1].contiguous()) for part in work.tokens.chunk(options.micro_batches)]
    return Steps(trainer, trainer.asked(rows))


def checked(ranks: Ranks, options: argparse.Namespace) -> str:
    """Codes and gradients of a small model beside those of weights gathered whole; all ranks call it."""
    work = Work(SHAPES["tiny"], drawn(SHAPES["tiny"], ranks.rank, options), None)
    figures = []
    for packed in (False, True):
        steps = stepping(Case(partial(sharded, packed=packed)), work, ranks, options)
        figures.append(
            (steps.trainer.stepper.gradient_norm(steps.asked, "crossEntropy"), steps.take().item())
        )
    found: list[tuple[BitLinear, PackedCodes]] = []
    layers = [part for part in steps.trainer.student.modules() if isinstance(part, BitLinear)]
    for part in layers:
        part.register_forward_pre_hook(lambda part, _: found.append((part, part.kept)))
    with torch.no_grad(), called_directly(steps.trainer.student):
        steps.trainer.student.model(input_ids=work.tokens[:1, :-1].to(ranks.device))
    others, furthest = 0, 0.0
    for part, kept in found:
        codes, scale = quantize_weights(part.weight.full_tensor())
        others += int((unpack_ternary(kept.packed, part.in_features) != codes).sum())
        furthest = max(furthest, (kept.scale / scale - 1).abs().item())
    (norm, loss), (norm_of_codes, loss_of_codes) = figures
    return (
        f"Check, tiny: {len(found)} of {len(layers)} matrices gathered as codes, {others} codes differ, "
        f"scales by {furthest:.1e}; loss {loss_of_codes:.6f} for {loss:.6f}, gradient norm "
        f"{norm_of_codes:.6f} for {norm:.6f}."
    )


def measured(case: Case, work: Work, ranks: Ranks, options: argparse.Namespace) -> Measured:
    """One case. Raises what it raises."""
    on_gpu = ranks.device.type == "cuda"
    steps = stepping(case, work, ranks, options)
    take = steps.take
    for _ in range(options.warm_up):
        take()
    with counted(ranks.world) as sent:
        take().item()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    blocks = [
        timed(ranks.device, lambda: [take() for _ in range(options.steps)]) / options.steps
        for _ in range(options.blocks)
    ]
    peak = torch.cuda.max_memory_reserved() if on_gpu else 0
    # DDP reduces in C++, a ring of two passes over all gradients.
    reduced = sent.reduced + round(2 * steps.by_ddp * (ranks.world - 1) / ranks.world)
    return Measured(statistics.median(blocks), peak, sent.gathered, reduced, take().item())


def attempted(name: str, work: Work, ranks: Ranks, options: argparse.Namespace) -> Measured | str:
    """This rank's figures, or why it has none."""
    try:
        return measured(CASES[name], work, ranks, options)
    # A case that fails is a row that says so.
    except Exception as error:  # noqa: BLE001
        return _why(error)
    finally:
        _nothing_left()


def _nothing_left() -> None:
    # What was compiled may hold a model, and its memory would be another case's.
    torch._dynamo.reset()
    free()


def _why(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


def together(found: Measured | str, ranks: Ranks) -> Measured | str:
    """The figures of the slowest and fullest rank, or why one has none; every rank calls it."""
    every: list[Any] = [None] * ranks.world
    dist.all_gather_object(every, found, group=ranks.control)
    failed = [each for each in every if isinstance(each, str)]
    if failed:
        return failed[0]
    figures = ("seconds", "peak", "gathered", "reduced")
    return Measured(*(max(getattr(each, part) for each in every) for part in figures), loss=every[0].loss)


def row(name: str, found: Measured | str, one: Measured | str, tokens: int, world: int) -> str:
    """Of the table: tokens of all ranks a second, in one GPU's, and how much of one GPU's each does."""
    if isinstance(found, str):
        return f"| {name} | not measured: {found} | | | | | | |"
    scaling = ""
    if isinstance(one, Measured) and found is not one:
        scaling = f"{world * one.seconds / found.seconds:.2f} x, {one.seconds / found.seconds:.1%}"
    return (
        f"| {name} | {world * tokens / found.seconds:,.0f} | {found.seconds * 1e3:.1f} ms | {scaling} "
        f"| {found.peak / 2**30:.2f} GiB | {found.gathered / 2**20:,.0f} MiB "
        f"| {found.reduced / 2**20:,.0f} MiB | {found.loss:.4f} |"
    )


def drawn(shape: Shape, rank: int, options: argparse.Namespace) -> Tensor:
    """A rank's tokens of each step, (B, S + 1)."""
    generator = torch.Generator().manual_seed(rank)
    size = (options.tokens // options.sequence, options.sequence + 1)
    return torch.randint(shape.vocabulary, size, generator=generator)


def alone(options: argparse.Namespace) -> dict[str, tuple[Measured | str, str | None]]:
    """Each shape on this process's GPU, before there is a process group: a step asks all that are in one.

    And the kernel that attends fastest there."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    ranks = Ranks(0, 1, device, None)  # type: ignore[arg-type]  # one rank asks nobody
    found: dict[str, tuple[Measured | str, str | None]] = {}
    for name in options.shapes:
        shape, tokens = SHAPES[name], drawn(SHAPES[name], 0, options)
        chosen = None
        if on_gpu:
            rows = len(tokens) // options.micro_batches
            size = AttentionShape(rows, shape.heads, shape.key_heads, options.sequence, shape.head_dim)
            chosen = fastest(measure_attention(size, device))
        found[name] = attempted(ALONE, Work(shape, tokens, chosen), ranks, options), chosen
    return found


def run(
    name: str, one: Measured | str, attention: str | None, ranks: Ranks, options: argparse.Namespace
) -> None:
    """Measures one shape; the first rank prints it."""
    tokens = drawn(SHAPES[name], ranks.rank, options)
    work = Work(SHAPES[name], tokens, attention)
    lines = [row(ALONE, one, one, tokens[:, 1:].numel(), 1)]
    for case in options.cases:
        found = together(attempted(case, work, ranks, options), ranks)
        lines.append(row(case, found, one, tokens[:, 1:].numel(), ranks.world))
    if ranks.first:
        print(
            f"\n## {name}, {ranks.world} x {len(tokens)} x {options.sequence:,} tokens a step, micro batches "
            f"of {len(tokens) // options.micro_batches}\n\n"
            "| case | tokens/s | step | against one GPU | peak a GPU | gathered | reduced | loss |\n"
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *lines,
            sep="\n",
            flush=True,
        )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.6B", "1.7B"])
    parser.add_argument("--cases", nargs="+", choices=list(CASES)[1:], default=list(CASES)[1:])
    parser.add_argument("--sequence", type=int, default=2048, help="tokens in a row")
    parser.add_argument("--tokens", type=int, default=16_384, help="in a step, a GPU")
    parser.add_argument("--micro-batches", type=int, default=1, help="that these are divided into")
    parser.add_argument("--warm-up", type=int, default=3, help="steps")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="in a block")
    parser.add_argument("--eager", action="store_true", help="layers are not compiled")
    parser.add_argument("--limit", type=int, default=300, help="seconds after which it gives up")
    options = parser.parse_args()
    # A rank that fails amid a collective leaves the others waiting there.
    faulthandler.dump_traceback_later(options.limit, exit=True)
    first = os.environ["RANK"] == "0"
    if first:
        print(heading(), flush=True)
    begun = time.perf_counter()
    measured_alone = alone(options) if first else None
    ranks = Ranks.join(int(torch.cuda.is_available()))
    ones = ranks.from_first(measured_alone)
    if first:
        print(
            "\nGathered: what all-gathers bring to a GPU from the others in a step, counted as they are "
            "asked for. Reduced: what of the gradients a GPU sends; FSDP2's counted likewise, DDP's computed "
            "from their size."
        )
    try:
        said = checked(ranks, options)
    except Exception as error:  # noqa: BLE001
        said = f"Check failed: {_why(error)}"
    _nothing_left()
    if ranks.first:
        print(f"\n{said}", flush=True)
    for name in options.shapes:
        run(name, *ones[name], ranks, options)
    if ranks.first:
        print(f"\nAll that took {time.perf_counter() - begun:.0f} s, compilation included.")
    faulthandler.cancel_dump_traceback_later()
    ranks.wait()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
