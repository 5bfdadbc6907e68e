"""What quantised layers cost on the CPU: a decoder layer's BitLinears beside the linears that they were."""

import platform
import statistics
import time
from collections.abc import Iterable
from contextlib import nullcontext
from importlib.metadata import version

import torch
from torch import Tensor, nn

from bitnet_trainer.quantization.bitlinear import BitLinear, QuantizationLambda
from bitnet_trainer.quantization.kept_codes import codes_kept

SIZES = ((576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576))
"""In and out of SmolLM2-135M's q, k, v, o, gate, up and down projection."""
TOKENS = (256, 2048)
"""Of a micro batch: the quickstart's, and one of more rows."""
CASES = {
    "lambda 0.5": (0.5, False),
    "lambda 1": (1.0, False),
    "lambda 1, codes made before, for several micro batches": (1.0, True),
}
WARM_UP, ROUNDS = 5, 40


def seconds(layers: Iterable[nn.Module], inputs: Iterable[Tensor], upstream: Iterable[Tensor]) -> float:
    """A forward and a backward pass of each."""
    begin = time.perf_counter()
    for layer, x, gradient in zip(layers, inputs, upstream, strict=True):
        layer(x).backward(gradient)
    return time.perf_counter() - begin


def ratios(tokens: int, lam: float, kept: bool) -> tuple[float, float]:
    """How many times as long BitLinears take as float32's and as bfloat16's linears: medians of pairs."""
    torch.manual_seed(0)
    linears = [nn.Linear(*size, bias=False) for size in SIZES]
    shared = QuantizationLambda(lam)
    quantized = nn.ModuleList(BitLinear.from_linear(linear, shared) for linear in linears)
    short = [nn.Linear(*size, bias=False, dtype=torch.bfloat16) for size in SIZES]
    inputs = [torch.randn(tokens, inner, requires_grad=True) for inner, _ in SIZES]
    upstream = [torch.randn(tokens, out) for _, out in SIZES]
    short_inputs = [x.detach().bfloat16().requires_grad_() for x in inputs]
    short_upstream = [each.bfloat16() for each in upstream]
    taken: list[tuple[float, float]] = []
    with codes_kept([quantized]) if kept else nullcontext():
        for _ in range(WARM_UP + ROUNDS):
            ours = seconds(quantized, inputs, upstream)
            full = seconds(linears, inputs, upstream)
            half = seconds(short, short_inputs, short_upstream)
            taken.append((ours / full, ours / half))
    by_full, by_half = zip(*taken[WARM_UP:], strict=True)
    return statistics.median(by_full), statistics.median(by_half)


def main() -> None:
    """Prints the table."""
    print(f"{platform.machine()}, torch {version('torch')}, {torch.get_num_threads()} threads\n")
    print("| tokens | seven BitLinears at | as long as float32's linears | as bfloat16's |")
    print("| ---: | --- | ---: | ---: |")
    for tokens in TOKENS:
        for name, (lam, kept) in CASES.items():
            full, half = ratios(tokens, lam, kept)
            print(f"| {tokens:,} | {name} | {full:.2f} x | {half:.2f} x |")


if __name__ == "__main__":
    main()
