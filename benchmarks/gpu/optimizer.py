"""The optimisers' steps: AdamW's and torch's, MuonClip's as it was and as it is, and what it needs."""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from unittest.mock import patch

import torch
from ceilings import product, seconds_each
from shapes import SHAPES, Shape
from step import DEVICE, heading
from timing import free, timed
from torch import Tensor, nn

from bitnet_crds.optimizer import Optimizer
from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.optim import MuonClip, clip_in_update, muon, muonclip, set_learning_rate
from bitnet_trainer.optim.adamw import FusedAdamW
from bitnet_trainer.optim.muon import MOMENTUM, Kernels, muon_step
from bitnet_trainer.optim.newton_schulz import COEFFICIENTS, STEPS, newton_schulz, operations
from bitnet_trainer.optim.products import self_product
from bitnet_trainer.optim.updates import advance, move
from bitnet_trainer.optimizer import build_optimizer

TOKENS = 16_384
"""In the step whose length is given."""
GOAL = 0.03
"""Of a step, at most, that MuonClip may take longer than AdamW."""
BATCHED = Kernels()
UPDATES = Kernels(updates=True)
ALL = Kernels(updates=True, products=True)
REPEATS = 8


# --- as it was: matrix by matrix


def newton_schulz_of_one(matrix: Tensor) -> Tensor:
    """(n, m) -> (n, m), in the matrix's own type."""
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / torch.linalg.matrix_norm(x).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


def one_by_one(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    *,
    learning_rate: float,
    weight_decay: float,
    divisor: Tensor,
    skipped: Tensor,
    kernels: Kernels | None,  # noqa: ARG001  # as what it stands in for
) -> None:
    """As `muon_step`."""
    for weight, gradient, momentum in zip(weights, gradients, momenta, strict=True):
        divided = gradient / divisor
        moved = momentum.lerp(divided, 1 - MOMENTUM)
        direction = newton_schulz_of_one(divided.lerp(moved, MOMENTUM).bfloat16())
        step = learning_rate * muon.RMS * max(weight.shape) ** 0.5
        updated = (weight * (1 - learning_rate * weight_decay)).add_(direction, alpha=-step)
        momentum.copy_(torch.where(skipped, momentum, moved))
        weight.copy_(torch.where(skipped, weight, updated))


# --- a model in training


@dataclass
class Training:
    """A model with gradients, and both optimisers of it."""

    model: nn.Module
    adamw: FusedAdamW
    muonclip: MuonClip
    guard: NonFiniteGuard = field(default_factory=lambda: NonFiniteGuard(DEVICE))

    @classmethod
    def of(cls, shape: Shape) -> "Training":
        """Weights and gradients are random."""
        model = shape.build(DEVICE)
        adam, clipping = (
            build_optimizer(Optimizer(name=name, weight_decay=0.1), model) for name in ("AdamW", "MuonClip")
        )
        for optimizer in (adam, clipping):
            set_learning_rate(optimizer, 0.01)
        for parameter in model.parameters():
            parameter.grad = 0.01 * torch.randn_like(parameter)
        assert isinstance(adam, FusedAdamW)
        assert isinstance(clipping, MuonClip)
        return cls(model, adam, clipping)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips, judges and updates, as a step of the trainer does."""
        norm = clip_in_update(optimizer, 1.0)
        self.guard.judge(torch.zeros((), device=DEVICE), norm, optimizer)
        optimizer.step()

    def by_adamw(self, kernel: bool | None = None) -> None:
        """One of its steps; None: as the trainer takes it. False: by torch, which writes gradients back."""
        self.adamw.kernel = kernel
        self.step(self.adamw)

    def by_muonclip(self, kernels: Kernels | None) -> None:
        """One of its steps; None: as it was."""
        self.muonclip.kernels = kernels
        if kernels is not None:
            self.step(self.muonclip)
            return
        with patch.object(muonclip, "muon_step", one_by_one):
            self.step(self.muonclip)

    @property
    def hidden(self) -> list[Tensor]:
        """Weights that Muon moves."""
        groups = (group for group in self.muonclip.param_groups if group["role"] == "hidden")
        return [weight for group in groups for weight in group["params"]]

    def batches(self) -> Iterator[list[Tensor]]:
        """The same as they go through together."""
        hidden = self.hidden
        for numbers in muon._batches(hidden):
            yield [hidden[number] for number in numbers]


def cases(training: Training) -> dict[str, Callable[[], object]]:
    """What is timed, by name: whole steps, then parts of the last of them."""
    return {
        "AdamW": training.by_adamw,
        "AdamW, torch's fused": lambda: training.by_adamw(kernel=False),
        "MuonClip, matrix by matrix": lambda: training.by_muonclip(None),
        "MuonClip, batched": lambda: training.by_muonclip(BATCHED),
        "MuonClip, batched, kernels for updates": lambda: training.by_muonclip(UPDATES),
        "MuonClip, batched, kernels for updates and symmetric products": lambda: training.by_muonclip(ALL),
        "part: Newton-Schulz, products by torch": lambda: _products(training, symmetric=False),
        "part: Newton-Schulz, symmetric products": lambda: _products(training, symmetric=True),
        "part: momenta and weights of Muon": lambda: _updates(training),
        "part: AdamW of the other weights": training.muonclip._step_adamw,
        "part: QK-clip": lambda: training.muonclip._clip.apply(torch.zeros((), device=DEVICE).bool()),
        "part: norm to clip by": lambda: clip_in_update(training.muonclip, 1.0),
    }


def _products(training: Training, *, symmetric: bool) -> None:
    for batch in training.batches():
        x = torch.empty(len(batch), *batch[0].shape, dtype=torch.bfloat16, device=DEVICE)
        torch._foreach_copy_(list(x.unbind()), [weight.data for weight in batch])
        newton_schulz(x, symmetric=symmetric)


@torch.no_grad()
def _updates(training: Training) -> None:
    divisor, skipped = torch.ones((), device=DEVICE), torch.zeros((), device=DEVICE).bool()
    for batch in training.batches():
        gradients = [weight.grad for weight in batch if weight.grad is not None]
        momenta = [training.muonclip.state[weight]["momentum"] for weight in batch]
        ahead = advance(
            gradients,
            momenta,
            share=1 - MOMENTUM,
            dtype=torch.bfloat16,
            divisor=divisor,
            skipped=skipped,
            kernel=True,
        )
        move(list(batch), ahead, keep=1.0, step=1e-6, skipped=skipped, kernel=True)


# --- what is right before it is timed


def products_agree(shape: Shape) -> Iterator[str]:
    """Sentences on how far each way of computing Newton-Schulz is from float64's."""
    draw = torch.Generator(DEVICE).manual_seed(0)
    sizes = {(shape.hidden, shape.intermediate), (shape.intermediate, shape.hidden), (shape.hidden,) * 2}
    for size in sorted(sizes):
        x = torch.randn(2, *size, generator=draw, device=DEVICE).bfloat16()
        exact = torch.stack([newton_schulz_of_one(each.double()) for each in x])
        ways = {
            "matrix by matrix": torch.stack([newton_schulz_of_one(each) for each in x]),
            "batched": newton_schulz(x),
            "symmetric": newton_schulz(x, symmetric=True),
        }
        errors = (
            f"{name} {((found.double() - exact).norm() / exact.norm()).item():.2e}"
            for name, found in ways.items()
        )
        yield f"Newton-Schulz of {size[0]} x {size[1]}, off from float64's by: {', '.join(errors)}"
        yield f"the same each time: {torch.equal(newton_schulz(x, symmetric=True), ways['symmetric'])}"


def updates_agree(shape: Shape) -> Iterator[str]:
    """Sentences on the kernels for updates: beside torch, and where a step is left out."""
    draw = torch.Generator(DEVICE).manual_seed(0)
    sides = (3, shape.hidden, shape.intermediate)
    weights, gradients, momenta = (torch.randn(sides, generator=draw, device=DEVICE) for _ in range(3))

    def stepped(kernels: Kernels, gradients: Tensor, *, skipped: bool) -> Tensor:
        state = torch.stack((weights, momenta))
        muon_step(
            list(state[0].unbind()),
            list(gradients.unbind()),
            list(state[1].unbind()),
            learning_rate=0.01,
            weight_decay=0.1,
            skipped=torch.tensor(skipped, device=DEVICE),
            kernels=kernels,
        )
        return state

    apart = stepped(UPDATES, gradients, skipped=False) - stepped(BATCHED, gradients, skipped=False)
    yield f"weights and momenta by kernels are off from torch's by {apart.abs().max().item():.1e} at most"
    poisoned = stepped(ALL, torch.full_like(gradients, torch.nan), skipped=True)
    yield f"a step that is left out changes nothing: {torch.equal(poisoned, torch.stack((weights, momenta)))}"


# --- time


def measured(found: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the device, and until the host is free again; medians."""
    for _ in range(2):
        found()
    on_device, on_host = [], []

    def noted() -> None:
        begun = time.perf_counter()
        found()
        on_host.append(time.perf_counter() - begun)

    for _ in range(REPEATS):
        on_device.append(timed(DEVICE, noted))
    return statistics.median(on_device), statistics.median(on_host)


def table(training: Training, step: float) -> str:
    """Markdown. `step` in seconds is a whole one's length."""
    lines = [
        "| | time | host | over AdamW | of a step | tokens a step where that is 3 % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    adamw = None
    for name, case in cases(training).items():
        try:
            took, host = measured(case)
        except Exception as error:  # noqa: BLE001
            first = (str(error).splitlines() or [""])[0]
            lines.append(f"| {name} | not measured: {type(error).__name__}: {first[:160]} | | | | |")
            continue
        row = f"| {name} | {took * 1e3:.2f} ms | {host * 1e3:.2f} ms |"
        if name == "AdamW":
            adamw = took
            row += f" | {took / step:.1%} | |"
        elif adamw is None or name.startswith("part"):
            row += " | | |"
        else:
            row += compared(took - adamw, step)
        lines.append(row)
    return "\n".join(lines)


def compared(over: float, step: float) -> str:
    """Cells on what MuonClip takes more than AdamW, in seconds, where a step of TOKENS takes `step`."""
    mark = "" if over <= GOAL * step else " (over the goal)"
    return f" {over * 1e3:.2f} ms | {over / step:.1%}{mark} | {TOKENS * over / (GOAL * step):,.0f} |"


def floor(training: Training, step: float, rate: float) -> str:
    """What Newton-Schulz needs at the rate of a large product in bfloat16."""
    lines = [f"A product of 8,192 cubed in bfloat16 reaches {rate / 1e12:.0f} TFLOP/s.", ""]
    lines += [
        "| Newton-Schulz | operations | least | of a step | tokens a step where that is 3 % |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, symmetric in (("as written", False), ("half of each symmetric product", True)):
        needed = sum(operations(*weight.shape, symmetric=symmetric) for weight in training.hidden)
        least = needed / rate
        lines.append(
            f"| {name} | {needed / 1e12:.2f}e12 | {least * 1e3:.2f} ms | {least / step:.1%} "
            f"| {TOKENS * least / (GOAL * step):,.0f} |"
        )
    return "\n".join(lines)


def sweep(shape: Shape) -> None:
    """Times the symmetric kernel with other tiles, beside torch's whole product, and prints it."""
    symmetric = import_module("bitnet_trainer.optim.kernels.symmetric")
    print("\n## x x^T by tiles, whole product counted\n\n| tiles | size | TFLOP/s |\n| --- | --- | ---: |")
    sizes = ((28, shape.hidden, shape.intermediate), (28, shape.hidden, shape.hidden))
    some = [
        symmetric.Tiles(*each)
        for each in ((128, 64, 4, 3), (128, 64, 4, 4), (128, 64, 8, 3), (128, 64, 8, 4), (128, 128, 8, 2))
    ] + [symmetric.Tiles(64, 64, 4, 4), symmetric.Tiles(64, 128, 4, 3), symmetric.Tiles(256, 64, 8, 2)]
    for batch, short, long in sizes:
        inputs = [torch.randn(batch, short, long, device=DEVICE).bfloat16() for _ in range(2)]
        for transposed in (False, True):
            xs = [x.mT.contiguous().mT if transposed else x for x in inputs]
            ways: dict[str, Callable[[Tensor], object]] = {"torch": self_product}
            for tiles in some:
                ways[str(tiles)] = partial(symmetric.self_product, plus=None, tiles=tiles)
            for name, way in ways.items():
                size = f"{batch} x {short} x {long}{', transposed' if transposed else ''}"
                try:
                    took = seconds_each([partial(way, x) for x in xs], DEVICE)
                    reached = f"{2 * batch * short**2 * long / took / 1e12:.0f}"
                except Exception as error:  # noqa: BLE001
                    reached = f"not measured: {(str(error).splitlines() or [''])[0][:100]}"
                print(f"| {name} | {size} | {reached} |", flush=True)


def run(name: str, shape: Shape, step: float, rate: float) -> None:
    """Checks and times one shape, and prints it."""
    print(f"\n## {name}, a step of {TOKENS:,} tokens in {step * 1e3:.0f} ms\n", flush=True)
    try:
        for sentence in itertools.chain(products_agree(shape), updates_agree(shape)):
            print(f"- {sentence}", flush=True)
    except Exception as error:  # noqa: BLE001
        print(f"- not checked: {type(error).__name__}: {error}", flush=True)
    training = Training.of(shape)
    print("\n" + table(training, step), flush=True)
    print("\n" + floor(training, step, rate), flush=True)
    del training
    free()


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["135M", "0.6B", "1.7B"])
    parser.add_argument("--step-ms", type=float, default=150.0, help="a step of 8 x 2,048 tokens at 0.6B")
    parser.add_argument("--sweep", action="store_true", help="other tiles of the symmetric kernel, too")
    options = parser.parse_args()
    print(heading(), flush=True)
    side = 8192 if DEVICE.type == "cuda" else 64
    rate = product(side, side, side, DEVICE).bf16
    whole = SHAPES["0.6B"].operations(8, 2048).total
    for name in options.shapes:
        shape = SHAPES[name]
        # Of other shapes as long as their operations say.
        step = options.step_ms / 1e3 * shape.operations(8, 2048).total / whole
        run(name, shape, step, rate)
        if options.sweep:
            sweep(shape)


if __name__ == "__main__":
    main()
