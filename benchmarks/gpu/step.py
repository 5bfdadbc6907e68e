"""Our step against what else trains the same shape: tokens a second, memory, profile, the card's ceilings."""

import argparse
import platform
import statistics
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch
from cases import CASES, Trained, Workload
from ceilings import copied, product
from kernel_families import FAMILIES, Profile, profiled
from shapes import SHAPES, Operations, Shape
from timing import Measured, free, measure

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "torchao", "onebitllms")
OURS, BEST = "ours", "bf16, layers compiled, CE compiled"
"""What is compared with each other case, and the fastest that quantises nothing."""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def heading() -> str:
    """Card, driver and versions."""
    card = "CPU"
    if DEVICE.type == "cuda":
        card = f"{torch.cuda.get_device_name()}, driver {_driver()}"
    return ", ".join(
        [card, f"Python {platform.python_version()}", *(f"{name} {_version(name)}" for name in PACKAGES)]
    )


def _driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return said.splitlines()[0]


def table(
    work: Workload,
    figures: Mapping[str, Measured],
    missing: Mapping[str, str],
    standing: Mapping[str, Trained],
) -> str:
    """Markdown. A ratio is the median over the rounds, of ours and the other measured after each other."""
    tokens = work.batch * work.sequence
    lines = [
        "| case | tokens/s | step | blocks from .. to | ours is | peak | first step | loss |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    ours = figures.get(OURS)
    for name, found in sorted(figures.items(), key=lambda item: item[1].seconds):
        ratio = ""
        if ours is not None and name != OURS:
            pairs = zip(found.blocks, ours.blocks, strict=True)
            ratio = f"{statistics.median(other / own for other, own in pairs):.3f} x as fast"
        least, most = min(found.blocks), max(found.blocks)
        peak = "in graphs" if standing[name].replayed else f"{found.peak / 2**30:.2f} GiB"
        lines.append(
            f"| {name} | {tokens / found.seconds:,.0f} | {found.seconds * 1e3:.1f} ms "
            f"| {least * 1e3:.1f} .. {most * 1e3:.1f} ms | {ratio} | {peak} "
            f"| {found.first:.1f} s | {found.loss:.3f} |"
        )
    return "\n".join(
        [*lines, *(f"| {name} | not measured: {why} | | | | | | |" for name, why in missing.items())]
    )


def profile_table(profiles: Mapping[str, Profile], figures: Mapping[str, Measured]) -> str:
    """Markdown: milliseconds of kernels by family, a column a case."""
    names = list(profiles)
    lines = [f"| family | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
    for family in FAMILIES:
        times = [f"{profiles[name].families[family] * 1e3:.1f} ms" for name in names]
        lines.append(f"| {family} | {' | '.join(times)} |")
    sums = [f"{sum(profiles[name].families.values()) * 1e3:.1f} ms" for name in names]
    steps = [f"{figures[name].seconds * 1e3:.1f} ms" for name in names]
    lines += [f"| all kernels | {' | '.join(sums)} |", f"| a step, unprofiled | {' | '.join(steps)} |"]
    return "\n".join(lines)


def roofline(work: Workload) -> str:
    """The ceilings of this card for the products of this shape, and how long a step is at them."""
    shape, rows = work.shape, work.batch * work.sequence
    wide = shape.heads * shape.head_dim
    sizes = {
        "square": (8192, 8192, 8192),
        "q_proj": (rows, shape.hidden, wide),
        "o_proj": (rows, wide, shape.hidden),
        "up_proj": (rows, shape.hidden, shape.intermediate),
        "down_proj": (rows, shape.intermediate, shape.hidden),
        "down_proj, gradient of the weight": (shape.hidden, rows, shape.intermediate),
        "head, 512 tokens": (512, shape.hidden, shape.vocabulary),
        "head, 8,192 tokens": (8192, shape.hidden, shape.vocabulary),
    }
    lines = [
        f"A copy on the device moves {copied(DEVICE) / 1e12:.2f} TB/s, read and written.",
        "",
        "| product | rows x inner x columns | bf16 | int8, ours | int8, torchao's | int8, torch._int_mm |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    reached = {}
    for name, size in sizes.items():
        found = reached[name] = product(*size, DEVICE)
        scaled = "no torchao" if found.scaled is None else f"{found.scaled / 1e12:.0f} TOP/s"
        lines.append(
            f"| {name} | {' x '.join(f'{each:,}' for each in size)} "
            f"| {found.bf16 / 1e12:.0f} TFLOP/s | {found.ours / 1e12:.0f} TOP/s | {scaled} "
            f"| {found.int8 / 1e12:.0f} TOP/s |"
        )
    needed = shape.operations(work.batch, work.sequence)
    bf16, int8 = reached["square"].bf16, reached["square"].ours
    lines += ["", _floors(needed, bf16, int8)]
    return "\n".join(lines)


def _floors(needed: Operations, bf16: float, int8: float) -> str:
    """Milliseconds of a step's products at the ceilings of a square product."""
    rest = needed.head + needed.attention
    floors = {
        "all products in bf16": needed.total / bf16,
        "the projections' forward pass in int8": (needed.projections * 2 / 3 + rest) / bf16
        + needed.projections / 3 / int8,
        "the projections' forward and backward pass in int8": rest / bf16 + needed.projections / int8,
    }
    lines = ["| a step's products at the square's rate | least |", "| --- | ---: |"]
    lines += [f"| {name} | {seconds * 1e3:.1f} ms |" for name, seconds in floors.items()]
    return "\n".join(lines)


def run(name: str, shape: Shape, sequence: int, options: argparse.Namespace) -> None:
    """Measures one shape at one length, and prints it."""
    batch = options.tokens // sequence
    torch.manual_seed(0)
    tokens = torch.randint(shape.vocabulary, (batch, sequence + 1))
    work = Workload(name, shape, tokens, DEVICE, options.micro_batches)
    said = f", {options.micro_batches} micro batches" if options.micro_batches > 1 else ""
    print(f"\n## {name}, {batch} x {sequence:,} tokens{said}\n", flush=True)
    builds = {case: CASES[case] for case in options.cases}
    figures, missing, standing = measure(
        work, builds, warm_up=options.warm_up, blocks=options.blocks, steps=options.steps
    )
    print("\n" + table(work, figures, missing, standing), flush=True)
    if DEVICE.type == "cuda":
        # Also what CUDA graphs hold, which no tensor has when they are replayed.
        held = torch.cuda.max_memory_reserved() / 2**30
        print(f"\nAll cases together held at most {held:.2f} GiB, graphs and free blocks included.")
        torch.cuda.reset_peak_memory_stats()
    profiles = {
        case: profiled(standing[case], shape.vocabulary, DEVICE)
        for case in options.profile
        if case in standing
    }
    if profiles:
        print("\n" + profile_table(profiles, figures), flush=True)
    for case, found in profiles.items() if options.kernels else ():
        print(f"\nKernels of {case}, longest first:")
        for (family, kernel), seconds in list(found.kernels.items())[: options.kernels]:
            print(f"{seconds * 1e3:8.2f} ms  {family:<22} {kernel[:120]}")
    del standing
    free()
    if options.roofline:
        print("\n" + roofline(work), flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.6B"])
    parser.add_argument("--sequences", nargs="+", type=int, default=[2048], help="tokens in a row")
    parser.add_argument("--tokens", type=int, default=16_384, help="in a step")
    parser.add_argument("--micro-batches", type=int, default=1, help="that these are divided into")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--profile", nargs="*", choices=CASES, default=[OURS, BEST])
    parser.add_argument("--kernels", type=int, default=0, help="how many of each profile to print, too")
    parser.add_argument("--roofline", action="store_true", help="the card's ceilings, too")
    parser.add_argument("--warm-up", type=int, default=4, help="steps")
    parser.add_argument("--blocks", type=int, default=7, help="rounds over all cases")
    parser.add_argument("--steps", type=int, default=4, help="in a block")
    options = parser.parse_args()
    # Compiled layers may differ in a number that is theirs, and all of them shall be compiled.
    torch._dynamo.config.recompile_limit = 64
    print(heading(), flush=True)
    for name in options.shapes:
        for sequence in options.sequences:
            run(name, SHAPES[name], sequence, options)
            torch._dynamo.reset()


if __name__ == "__main__":
    main()
