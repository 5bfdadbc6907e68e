"""Head and loss, forward and backward: ours beside logits held whole, cross-entropy and distillation."""

import argparse
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from unittest.mock import patch

import torch
from head_losses import (
    CASES,
    CE,
    DENSE_CE,
    DENSE_KL,
    GIVEN,
    TEMPERATURE,
    TOP,
    Batch,
    Loss,
    cross_entropy,
    exact,
)
from step import DEVICE, heading
from timing import allocated, free, timed
from torch import Tensor

from bitnet_trainer.objectives import head_loss
from bitnet_trainer.objectives.kernels import rows
from bitnet_trainer.step import autocast


def gradients(batch: Batch, total: Tensor) -> tuple[Tensor, Tensor]:
    """Of hidden states and weight."""
    hidden, weight = torch.autograd.grad(total, (batch.hidden, batch.head.weight))
    return hidden, weight


def errors(name: str, loss: Loss, batch: Batch) -> str:
    """Relative, of the loss and of the gradients' norms, against float64."""
    truth = exact(name, batch)
    expected = gradients(batch, truth)
    # In several chunks, so that what they add up to is checked.
    with patch.object(head_loss, "CHUNK_BYTES", head_loss.CHUNK_BYTES // 8), autocast(DEVICE):
        total = loss(batch)
    found = gradients(batch, total)
    pairs = zip(found, expected, strict=True)
    off = [(one.double() - other.double()).norm() / other.double().norm() for one, other in pairs]
    return " | ".join(f"{float(each):.1e}" for each in (((total - truth) / truth).abs().detach(), *off))


def check_kernels(vocabulary: int) -> None:
    """Each kernel against its twin in float64, of the same bfloat16 logits; on the CPU it is its twin."""
    torch.manual_seed(1)
    count = 64
    own, goal = (3 * torch.randn(2, count, vocabulary, device=DEVICE)).bfloat16().unbind()
    apart, mass, tail = torch.randn(3, count, device=DEVICE).unbind()
    pull = rows.Pull(apart + 12, mass.abs(), tail.abs() / 9)
    exactly = rows.Pull(*(part.double() for part in pull))
    for name, kernel, twin in (
        ("log_sums", lambda x: rows.log_sums(x, 2.0, pull), lambda x: rows.log_sums(x, 2.0, exactly)),
        (
            "divergences",
            lambda x: rows.divergences(x, goal, 2.0, pull.mass),
            lambda x: rows.divergences(x, goal.double(), 2.0, exactly.mass),
        ),
    ):
        written, truth = own.clone(), own.double()
        value, expected = kernel(written), twin(truth)
        value_off = float(((value - expected) / expected).abs().max())
        written_off = float((written.double() - truth).norm() / truth.norm())
        print(
            f"{name}: values {value_off:.1e} off, what it writes {written_off:.1e} (bfloat16 rounds by 1e-3)"
        )
        if not (value_off < 1e-5 and written_off < 3e-3):
            print(f"WRONG: {name} is not its twin")


# --- measuring


@dataclass
class Measured:
    """A case's figures, forward and backward."""

    loss: Loss
    off: str
    times: list[float] = field(default_factory=list)
    """Seconds."""
    peak: int = 0
    """Bytes beyond inputs and weights; the gradients are in it."""

    @property
    def milliseconds(self) -> float:
        """The median."""
        return statistics.median(self.times) * 1e3


def once(case: Measured, batch: Batch) -> None:
    """Runs a case once more."""
    batch.hidden.grad = batch.head.weight.grad = None
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = allocated(DEVICE)

    def both() -> None:
        with autocast(DEVICE):
            total = case.loss(batch)
        total.backward()

    case.times.append(timed(DEVICE, both))
    if DEVICE.type == "cuda":
        case.peak = torch.cuda.max_memory_allocated() - before
    batch.hidden.grad = batch.head.weight.grad = None


def measure(
    builds: Mapping[str, Callable[[], Loss]], batch: Batch, checked: Batch, rounds: int
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Figures by case, and why a case has none. The cases take turns."""
    found: dict[str, Measured] = {}
    missing: dict[str, str] = {}
    for turn in range(-2, rounds):
        for name, build in builds.items():
            if name in missing:
                continue
            try:
                if name not in found:
                    loss = build()
                    off = " | | " if name.startswith("the products") else errors(name, loss, checked)
                    found[name] = Measured(loss, off)
                once(found[name], batch)
            # What cannot be had, or fails, is a row that says so.
            except Exception as error:  # noqa: BLE001
                missing[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
                found.pop(name, None)
                free()
        if turn < 0:
            for case in found.values():
                case.times.clear()
    return found, missing


def table(found: Mapping[str, Measured], missing: Mapping[str, str]) -> str:
    """Markdown."""
    lines = [
        "| case | time | from .. to | peak | loss off | gradient of hidden states off | of the weight |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, case in found.items():
        least, most = min(case.times) * 1e3, max(case.times) * 1e3
        lines.append(
            f"| {name} | {case.milliseconds:.2f} ms | {least:.2f} .. {most:.2f} ms "
            f"| {case.peak / 2**30:.2f} GiB | {case.off} |"
        )
    return "\n".join(
        [*lines, *(f"| {name} | not measured: {why} | | | | | |" for name, why in missing.items())]
    )


def goals(found: Mapping[str, Measured]) -> str:
    """What was aimed at."""
    if not {CE, DENSE_CE, DENSE_KL, GIVEN} <= found.keys():
        return "Goals: not all cases were measured."
    memory = found[GIVEN].peak / max(found[DENSE_KL].peak, 1)
    time = found[GIVEN].milliseconds / found[CE].milliseconds
    against = found[CE].milliseconds / found[DENSE_CE].milliseconds
    return (
        f"Top {TOP} with the teacher's top given: peak {memory:.4f} of that of KL with logits whole (goal "
        f"0.05), time {time:.3f} x CE's (goal 1.10). CE: {against:.3f} x the time with logits whole."
    )


def tiles(vocabulary: int) -> str:
    """The pass over a chunk's logits, by how a row is cut up."""
    from bitnet_trainer.objectives.kernels import rows_triton

    count = 4096
    logits = torch.randn(count, vocabulary, device=DEVICE).bfloat16()
    pull = rows.Pull(*torch.ones(3, count, device=DEVICE).unbind())
    lines = [
        "| numbers at once | warps | log_sums, 4,096 tokens | read twice, written once |",
        "| ---: | ---: | ---: | ---: |",
    ]
    kept = rows_triton.BLOCK, rows_triton.WARPS
    for block, warps in ((2048, 4), (4096, 4), (4096, 8), (8192, 8), (8192, 16), (16384, 16), (32768, 32)):
        rows_triton.BLOCK, rows_triton.WARPS = block, warps
        took = [timed(DEVICE, lambda: rows.log_sums(logits, 1.0, pull)) for _ in range(12)][2:]
        speed = 3 * 2 * logits.numel() / statistics.median(took) / 1e12
        lines.append(f"| {block:,} | {warps} | {statistics.median(took) * 1e3:.3f} ms | {speed:.2f} TB/s |")
    rows_triton.BLOCK, rows_triton.WARPS = kept
    return "\n".join(lines)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048, help="tokens in a row")
    parser.add_argument("--hidden", type=int, default=1024, help="the student's hidden size")
    parser.add_argument("--teacher-hidden", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--chunks", nargs="*", type=int, help="CE over so many tokens at a time, too")
    parser.add_argument("--tiles", action="store_true", help="how the kernel cuts up a row, too")
    options = parser.parse_args()
    print(heading(), flush=True)
    print(
        f"\n## {options.rows} x {options.length:,} tokens, hidden size {options.hidden:,}, the teacher's "
        f"{options.teacher_hidden:,}, vocabulary {options.vocabulary:,}, temperature {TEMPERATURE}\n"
    )
    check_kernels(options.vocabulary)
    batch = Batch.drawn(options)
    checked = batch.first(min(options.length, 2048))
    found, missing = measure({name: CASES[name] for name in options.cases}, batch, checked, options.rounds)
    print("\n" + table(found, missing) + "\n\n" + goals(found), flush=True)
    del found
    if options.chunks is not None:
        sizes = options.chunks or (1024, 2048, 4096, 8192, 16384)
        builds = {
            f"CE, ours, {size:,} tokens at a time": lambda size=size: partial(cross_entropy, chunk=size)
            for size in sizes
        }
        print("\n" + table(*measure(builds, batch, checked, options.rounds)), flush=True)
    if options.tiles:
        print("\n" + tiles(options.vocabulary), flush=True)


if __name__ == "__main__":
    main()
