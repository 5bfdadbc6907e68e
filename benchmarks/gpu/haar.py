"""Kernels of Haar weights and of packed codes: bytes moved a second, against a copy on the device."""

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from ceilings import seconds_each
from step import DEVICE, heading
from timing import free
from torch import Tensor

from bitnet_trainer.quantization.haar import dequantize_haar, haar_codes, haar_transform_1d_row, haar_weights
from bitnet_trainer.quantization.kernels import haar, packing
from bitnet_trainer.quantization.packing import pack_codes, unpack_weights

SIZES = ((1024, 1024), (3072, 1024), (1024, 3072), (6144, 2048))
"""(out, in) of weights: of Qwen3-0.6B, and the largest of Qwen3-1.7B."""
GOAL = 0.85
"""Of a copy's speed, at least."""
TURNS = 3
"""Inputs that take turns, so that none is in the cache."""


@dataclass(frozen=True)
class Inputs:
    """Many weights of one size, and what the torch path makes of them."""

    weights: Tensor
    """(B, out, in) float32."""
    scales: Tensor
    """(B, 2), of the bands."""
    inverses: Tensor
    """(B, 2): what bands are multiplied by."""
    codes: Tensor
    """int8 (B, out, in), of Haar's bands."""
    packed: Tensor
    """uint8 (B, out, ceil(in / 4)), the same."""

    @classmethod
    def drawn(cls, rows: int, width: int, mib: int) -> "Inputs":
        """As many as `mib` MiB of float32 hold."""
        count = max(1, mib * 2**20 // (4 * rows * width))
        weights = 0.02 * torch.randn(count, rows, width, device=DEVICE)
        codes, scales = haar_codes(weights, kernel=False)
        return cls(weights, scales, 1 / scales, codes, pack_codes(codes, kernel=False))


@dataclass(frozen=True)
class Case:
    """One kernel, and its twin in torch."""

    name: str
    moved: float
    """Bytes read and written for a weight."""
    kernel: Callable[[Inputs], object]
    twin: Callable[[Inputs], object]
    work: haar.Work | packing.Work
    """What its programs do."""


def _sums(inputs: Inputs) -> Tensor:
    bands = haar_transform_1d_row(inputs.weights).abs()
    return bands.unflatten(-1, (2, -1)).sum((1, 3))


def _codes(inputs: Inputs) -> Tensor:
    bands = haar_transform_1d_row(inputs.weights).unflatten(-1, (2, -1))
    ternary = (bands * inputs.inverses[:, None, :, None]).round().clamp(-1, 1)
    return ternary.flatten(-2).to(torch.int8)


def cases(haars: haar.Work = haar.WORK, packs: packing.Work = packing.WORK) -> list[Case]:
    """All kernels. `haars` and `packs` are what their programs do."""
    bf16, f32 = torch.bfloat16, torch.float32
    return [
        Case("bands' sums", 4, lambda x: haar.band_sums(x.weights, haars), _sums, haars),
        Case("transform and codes", 5, lambda x: haar.codes_of(x.weights, x.inverses, haars), _codes, haars),
        Case(
            "both: codes and scales of weights",
            9,
            lambda x: haar.haar_codes(x.weights, haars),
            lambda x: haar_codes(x.weights, kernel=False),
            haars,
        ),
        *(
            Case(
                f"codes to weights, {name}",
                1 + size,
                partial(lambda x, dtype: haar.haar_weights(x.codes, x.scales, dtype, haars), dtype=dtype),
                partial(lambda x, dtype: dequantize_haar(x.codes, x.scales).to(dtype), dtype=dtype),
                haars,
            )
            for name, dtype, size in (("bf16", bf16, 2), ("f32", f32, 4))
        ),
        Case(
            "pack int8 codes",
            1.25,
            lambda x: packing.pack(x.codes, packs),
            lambda x: pack_codes(x.codes, kernel=False),
            packs,
        ),
        *(
            Case(
                f"unpack to {name}",
                0.25 + size,
                partial(_unpacked_by_kernel, dtype=dtype, work=packs),
                partial(_unpacked, dtype=dtype),
                packs,
            )
            for name, dtype, size in (("bf16", bf16, 2), ("f32", f32, 4))
        ),
    ]


def _unpacked_by_kernel(inputs: Inputs, dtype: torch.dtype, work: packing.Work) -> Tensor:
    width = inputs.weights.shape[-1]
    return packing.unpack(inputs.packed, width, inputs.scales[:, 0], dtype, work)


def _unpacked(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    return unpack_weights(inputs.packed, inputs.weights.shape[-1], inputs.scales[:, 0], dtype, kernel=False)


# --- what is right before it is timed


def checks(inputs: Inputs) -> Iterator[str]:
    """Sentences on what the kernels give, one each."""
    exact = torch.stack(
        [
            haar_transform_1d_row(weight.double()).abs().unflatten(-1, (2, -1)).sum((0, 2))
            for weight in inputs.weights
        ]
    )
    found = haar.band_sums(inputs.weights)
    yield f"sums: off by {((found - exact) / exact).abs().max().item():.1e} of themselves, in float64"
    again = haar.band_sums(inputs.weights)
    yield f"sums: the same each time: {torch.equal(found, again)}"
    by_same_scale = haar.codes_of(inputs.weights, inputs.inverses) != _codes(inputs)
    yield f"codes by the same scales: {by_same_scale.sum().item():,} of {inputs.codes.numel():,} differ"
    codes, scales = haar_codes(inputs.weights, kernel=True)
    off = ((scales - inputs.scales) / inputs.scales).abs().max().item()
    differing = (codes != inputs.codes).sum().item()
    yield f"codes by own scales, which are off by {off:.1e}: {differing:,} differ"
    for dtype in (torch.float32, torch.bfloat16):
        same = torch.equal(
            haar_weights(inputs.codes, inputs.scales, dtype, kernel=True),
            haar_weights(inputs.codes, inputs.scales, dtype, kernel=False),
        )
        yield f"codes to weights, {dtype}: bit-equal: {same}"
        unpacked = _unpacked_by_kernel(inputs, dtype, packing.WORK)
        yield f"unpacked, {dtype}: bit-equal: {torch.equal(unpacked, _unpacked(inputs, dtype))}"
    for dtype in (torch.int8, torch.bfloat16):
        same = torch.equal(pack_codes(inputs.codes.to(dtype), kernel=True), inputs.packed)
        yield f"packed, from {dtype}: bit-equal: {same}"


# --- time


def copy_seconds(size: float) -> float:
    """Of a copy that reads and writes `size` bytes in all."""
    pairs = [
        [torch.empty(int(size / 2), dtype=torch.uint8, device=DEVICE) for _ in "ab"] for _ in range(TURNS)
    ]
    return seconds_each([partial(goal.copy_, source) for goal, source in pairs], DEVICE)


def measured(case: Case, inputs: Sequence[Inputs], *, twin: bool) -> str:
    """A row of the table."""
    moved = case.moved * inputs[0].weights.numel()
    took = seconds_each([partial(case.kernel, each) for each in inputs], DEVICE)
    share = copy_seconds(moved) / took
    theirs = f"{seconds_each([partial(case.twin, inputs[0])], DEVICE) * 1e3:.3f} ms" if twin else ""
    mark = "" if share >= GOAL else " (under the goal)"
    return (
        f"| {case.name} | {moved / 2**20:,.0f} MiB | {took * 1e3:.3f} ms | {moved / took / 1e12:.2f} TB/s "
        f"| {share:.1%}{mark} | {theirs} |"
    )


def tried(name: str, row: Callable[[], str]) -> str:
    """The row, or one that says why there is none."""
    try:
        return row()
    except Exception as error:  # noqa: BLE001
        first = (str(error).splitlines() or [""])[0]
        return f"| {name} | not measured: {type(error).__name__}: {first[:160]} | | | | |"


def table(size: tuple[int, int], mib: int) -> None:
    """Checks and times kernels on weights of a size, and prints it."""
    inputs = [Inputs.drawn(*size, mib) for _ in range(TURNS)]
    print(f"\n## {len(inputs[0].weights)} weights of {size[0]:,} x {size[1]:,}\n")
    print(tried("checks", partial(_listed, inputs[0])))
    print("\n| kernel | moved | time | | of a copy | torch |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for case in cases():
        print(tried(case.name, partial(measured, case, inputs, twin=True)), flush=True)
    del inputs
    free()


def _listed(inputs: Inputs) -> str:
    return "\n".join(f"- {sentence}" for sentence in checks(inputs))


def sweep(size: tuple[int, int], mib: int) -> None:
    """Times kernels with other work for their programs, and prints it."""
    inputs = [Inputs.drawn(*size, mib) for _ in range(TURNS)]
    print(f"\n## Other work a program, {size[0]:,} x {size[1]:,}\n")
    print("| kernel | moved | time | | of a copy | |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for rows, warps in itertools.product((1, 2, 4, 8, 16), (4, 8)):
        haars = haar.Work(sum_pairs=512 * rows, sum_turns=8, rows=rows, warps=warps)
        for case in cases(haars, packing.Work(rows=2 * rows, warps=warps)):
            named = replace(case, name=f"{case.name}, {case.work}")
            if not case.name.startswith("both"):
                print(tried(named.name, partial(measured, named, inputs, twin=False)), flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=384, help="of float32 weights, three times")
    parser.add_argument("--sweep", action="store_true", help="other work a program at one size, instead")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(heading(), flush=True)
    if options.sweep:
        sweep(SIZES[2], options.mib)
        return
    for size in SIZES:
        table(size, options.mib)


if __name__ == "__main__":
    main()
