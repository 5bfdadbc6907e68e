"""What the card can do: products in bfloat16 and int8, and copies, on random data."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
from timing import timed
from torch import Tensor

from bitnet_trainer.quantization.kernels.int8_product import int8_product

REPEATS = 20


@dataclass(frozen=True)
class Product:
    """(rows, inner) x (inner, columns), and what each type reached."""

    rows: int
    inner: int
    columns: int
    bf16: float
    """Operations a second."""
    int8: float
    """Likewise; int8 x int8 -> int32, which cuBLAS writes."""
    ours: float
    """Likewise; the trainer's Triton kernel, which writes bfloat16, scaled by row."""
    scaled: float | None
    """Likewise; torchao's Triton kernel, which does that too. None without torchao."""


def seconds_each(actions: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Median of one call; the actions take turns, so that no input stays in the cache."""

    def all_of_them() -> None:
        for action in actions:
            action()

    all_of_them()
    return statistics.median(timed(device, all_of_them) for _ in range(REPEATS)) / len(actions)


def product(rows: int, inner: int, columns: int, device: torch.device) -> Product:
    """Measures one size; the right factor is held as linears hold it, (columns, inner)."""
    operations = 2 * rows * inner * columns

    def reached(make: Callable[[int, int], Tensor], multiply: Callable[[Tensor, Tensor], Tensor]) -> float:
        pairs = [(make(rows, inner), make(columns, inner).t()) for _ in range(4)]
        return operations / seconds_each([lambda a=a, b=b: multiply(a, b) for a, b in pairs], device)

    def floats(*size: int) -> Tensor:
        return torch.randn(*size, device=device, dtype=torch.bfloat16)

    def codes(*size: int) -> Tensor:
        return torch.randint(-127, 128, size, device=device, dtype=torch.int8)

    per_unit, scale = torch.rand(rows, 1, device=device) + 1, torch.rand((), device=device)
    ours = reached(codes, lambda a, b: int8_product(a, per_unit, b.t(), scale, torch.bfloat16))
    scaled = None
    if find_spec("torchao") is not None and device.type == "cuda":
        multiply = import_module("torchao.prototype.quantized_training.int8_mm").scaled_int8_mm
        by_row, by_tensor = (
            torch.rand(rows, 1, device=device).bfloat16(),
            torch.rand(1, device=device).bfloat16(),
        )
        scaled = reached(codes, lambda a, b: multiply(a, b, by_row, by_tensor))
    bf16, int32 = reached(floats, torch.mm), reached(codes, torch._int_mm)
    return Product(rows, inner, columns, bf16, int32, ours, scaled)


def copied(device: torch.device, size: int = 2**31) -> float:
    """Bytes a second, read and written, of a copy on the device of `size` bytes."""
    source = torch.randint(0, 127, (size,), device=device, dtype=torch.int8)
    goal = torch.empty_like(source)
    return 2 * size / seconds_each([lambda: goal.copy_(source)], device)
