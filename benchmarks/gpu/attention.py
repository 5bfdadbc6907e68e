"""Attention by each kernel there is: whole rows, and documents that share rows, forward and backward."""

import argparse
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from cases import rows_of_documents
from shapes import SHAPES, Shape
from step import DEVICE, heading
from timing import free, timed
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from bitnet_trainer.documents import begins, cumulative_lengths, dense_mask
from bitnet_trainer.models.attention import attend
from bitnet_trainer.models.attention_backends import BACKENDS, AttentionShape, fastest, measure, replayable

REPEATS = 4
"""Passes between two events."""
GOAL = 1.05
"""Most that documents may take of what whole rows do."""


@dataclass(frozen=True)
class Layout:
    """How rows are cut into documents."""

    name: str
    position_ids: Tensor
    """(B, S) on the device: each token's place in its document."""
    cu_seqlens: Tensor
    """(N + 1,) int32 on the device, filled up as in training."""

    @classmethod
    def of(cls, name: str, position_ids: Tensor) -> "Layout":
        """Of (B, S) on the CPU."""
        cu_seqlens = cumulative_lengths(position_ids)
        assert cu_seqlens is not None
        return cls(name, position_ids.to(DEVICE), cu_seqlens.to(DEVICE))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each document."""
        return [each for each in self.cu_seqlens.diff().tolist() if each]

    def mask(self, rows: int | None = None) -> Tensor:
        """(rows, 1, S, S) bool, of the first rows."""
        batch, length = self.position_ids.shape
        return dense_mask(self.cu_seqlens, batch, length)[:rows]

    def operations(self, shape: Shape) -> int:
        """What attention of a layer needs, forward and backward, nothing computed twice."""
        return sum(6 * shape.heads * shape.head_dim * each * each for each in self.lengths)


def layouts(batch: int, length: int) -> tuple[Layout, Layout]:
    """Whole rows, and documents."""
    whole = torch.arange(length).expand(batch, length)
    documents = rows_of_documents(whole).position_ids
    assert documents is not None
    return Layout.of("whole rows", whole), Layout.of("documents", documents)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries (B, H, S, d), keys and values (B, Hk, S, d) -> (B, S, H, d)."""


def of_trainer(layout: Layout | None, backend: str | None = None) -> Attend:
    """As the trainer has it: documents of a layout, or whole rows by one backend."""
    module = SimpleNamespace(training=False, attention_backend=backend)
    return lambda q, k, v: attend(module, q, k, v, None, None if layout is None else layout.cu_seqlens)


def by_dense_mask(layout: Layout) -> Attend:
    """As transformers has it where there are documents, its mask made before."""
    mask = layout.mask()

    def computed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    return computed


def by_varlen(layout: Layout) -> Attend:
    """The trainer's kernel, with no empty document after the last."""
    module = SimpleNamespace(training=False)
    exact = layout.cu_seqlens[: len(layout.lengths) + 1].contiguous()
    return lambda q, k, v: attend(module, q, k, v, None, exact)


def by_flex(layout: Layout) -> Attend:
    """Flex attention, compiled; its block mask is made before."""
    batch, length = layout.position_ids.shape
    document = begins(layout.position_ids).cumsum(dim=1)

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        return (key <= query) & (document[b, query] == document[b, key])

    blocks = flex.create_block_mask(sees, batch, None, length, length, device=DEVICE)
    compiled = torch.compile(flex.flex_attention, dynamic=False)

    def computed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = compiled(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2)

    return computed


def by_flash4(layout: Layout, *, whole: bool) -> Attend:
    """flash-attn-4, which is written in the CuTe DSL."""
    theirs = import_module("flash_attn.cute")

    def computed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, _, length, _ = q.shape
        rows = [each.transpose(1, 2) for each in (q, k, v)]
        if whole:
            answer = theirs.flash_attn_func(*rows, causal=True)
            return answer[0] if isinstance(answer, tuple) else answer
        answer = theirs.flash_attn_varlen_func(
            *(each.flatten(0, 1) for each in rows),
            cu_seqlens_q=layout.cu_seqlens,
            cu_seqlens_k=layout.cu_seqlens,
            max_seqlen_q=length,
            max_seqlen_k=length,
            causal=True,
        )
        out: Tensor = answer[0] if isinstance(answer, tuple) else answer
        return out.view(batch, length, *out.shape[1:])

    return computed


def cases(layout: Layout, *, whole: bool) -> Mapping[str, Callable[[], Attend]]:
    """What is measured, by name; made when it is its turn, since that may fail."""
    causal: dict[str, Callable[[], Attend]] = {
        "trainer: torch's choice, told that it is causal": partial(of_trainer, None),
        **{f"trainer: {name}": partial(of_trainer, None, name) for name in BACKENDS},
    }
    return {
        **(causal if whole else {}),
        "dense mask": partial(by_dense_mask, layout),
        "trainer: variable length, filled up": partial(of_trainer, layout),
        "variable length, not filled up": partial(by_varlen, layout),
        "Flex, compiled": partial(by_flex, layout),
        "flash-attn-4": partial(by_flash4, layout, whole=whole),
    }


@dataclass
class Figures:
    """One case's."""

    out: float
    """Error of what comes out, over its size."""
    gradients: float
    """The largest of the three gradients', likewise."""
    forward: list[float] = field(default_factory=list)
    """Seconds, one a round."""
    both: list[float] = field(default_factory=list)


def _relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def reference(inputs: list[Tensor], mask: Tensor) -> list[Tensor]:
    """What comes out of the first row, and its gradients by queries, keys and values, in float32."""
    query, key, value, gradient = (each[:1].detach().float() for each in inputs)
    leaves = [each.requires_grad_() for each in (query, key, value)]
    groups = query.shape[1] // key.shape[1]
    keys, values = (each.repeat_interleave(groups, dim=1) for each in leaves[1:])
    logits = (query @ keys.mT * query.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
    out = (logits.softmax(dim=-1) @ values).transpose(1, 2)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient.transpose(1, 2))]


def checked(attention: Attend, inputs: list[Tensor], expected: list[Tensor]) -> Figures:
    """Its errors in the first row; its first call is this."""
    out = attention(*inputs[:3])
    gradients = torch.autograd.grad(out, inputs[:3], inputs[3].transpose(1, 2))
    errors = [_relative(found[:1], other) for found, other in zip((out, *gradients), expected, strict=True)]
    return Figures(errors[0], max(errors[1:]))


@dataclass(frozen=True)
class Passes:
    """REPEATS passes of one case, as one call that is measured."""

    forward: Callable[[], None]
    both: Callable[[], None]

    @classmethod
    def of(cls, attention: Attend, inputs: list[Tensor]) -> "Passes":
        """Replayed on CUDA, as the trainer's layers are: what the host takes for them is not measured."""
        leaves, gradient = inputs[:3], inputs[3].transpose(1, 2)

        def forward() -> None:
            for _ in range(REPEATS):
                attention(*leaves)

        def both() -> None:
            for _ in range(REPEATS):
                torch.autograd.grad(attention(*leaves), leaves, gradient)

        return cls(replayable(forward, DEVICE), replayable(both, DEVICE))

    def add_round(self, figures: Figures) -> None:
        """Measures each once."""
        figures.forward.append(timed(DEVICE, self.forward) / REPEATS)
        figures.both.append(timed(DEVICE, self.both) / REPEATS)


def measured(
    layout: Layout, inputs: list[Tensor], rounds: int, *, whole: bool
) -> tuple[dict[str, Figures], dict[str, str]]:
    """Figures by case, the cases taking turns, and why a case has none."""
    expected = reference(inputs, layout.mask(rows=1))
    made: dict[str, Passes] = {}
    figures: dict[str, Figures] = {}
    missing: dict[str, str] = {}
    for name, make in cases(layout, whole=whole).items():
        try:
            attention = make()
            figures[name] = checked(attention, inputs, expected)
            made[name] = Passes.of(attention, inputs)
            made[name].add_round(Figures(0, 0))
        # What cannot be had, or refuses, is a row that says so.
        except Exception as error:  # noqa: BLE001
            made.pop(name, None)
            figures.pop(name, None)
            missing[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    for number in range(rounds):
        names = list(made)
        shift = number % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            made[name].add_round(figures[name])
    return figures, missing


def table(
    shape: Shape, layout: Layout, figures: Mapping[str, Figures], missing: Mapping[str, str]
) -> list[str]:
    """Markdown rows. TFLOP/s are of the operations that attention needs, forward and backward."""
    lines = []
    needed = layout.operations(shape)
    for name, found in figures.items():
        forward, both = statistics.median(found.forward), statistics.median(found.both)
        lines.append(
            f"| {layout.name} | {name} | {forward * 1e3:.3f} ms | {both * 1e3:.3f} ms "
            f"| {needed / both / 1e12:.0f} | {both * shape.layers * 1e3:.1f} ms | {found.out:.1e} "
            f"| {found.gradients:.1e} |"
        )
    return lines + [
        f"| {layout.name} | {name} | not measured: {why} | | | | | |" for name, why in missing.items()
    ]


def ratio(shape: Shape, whole: Mapping[str, Figures], packed: Mapping[str, Figures], step: float) -> str:
    """What documents cost beside whole rows, each as the trainer computes it."""

    def least(figures: Mapping[str, Figures]) -> tuple[str, float]:
        ours = {
            name: statistics.median(each.both) for name, each in figures.items() if name.startswith("trainer")
        }
        return min(ours.items(), key=lambda item: item[1])

    if not packed or not whole:
        return "One of both was not measured."
    (whole_name, alone), (packed_name, together) = least(whole), least(packed)
    more = (together - alone) * shape.layers
    return (
        f"Documents ({packed_name}) take {together / alone:.3f} of whole rows ({whole_name}); goal at most "
        f"{GOAL}. Of a step of {step * 1e3:.0f} ms that is {more / step:+.1%}."
    )


def run(name: str, shape: Shape, options: argparse.Namespace) -> None:
    """Measures one shape, and prints it."""
    batch, length = options.tokens // options.sequence, options.sequence
    sizes = AttentionShape(batch, shape.heads, shape.key_heads, length, shape.head_dim)
    inputs = sizes.random(DEVICE, torch.bfloat16 if DEVICE.type == "cuda" else torch.float32)
    print(f"\n## {name}, a layer of {batch} x {length:,} tokens, {sizes}\n", flush=True)
    if DEVICE.type == "cuda":
        for attempt in ("first", "second"):
            took = timed(DEVICE, lambda: measure(sizes, DEVICE))
            print(f"To choose at start takes {took:.3f} s the {attempt} time.")
        print(f"It would choose {fastest(measure(sizes, DEVICE))}.\n")
    whole, packed = layouts(batch, length)
    lengths = packed.lengths
    print(
        f"Documents: {len(lengths)} of {min(lengths)} to {max(lengths)} tokens, {len(packed.cu_seqlens) - 1} "
        "with the empty ones.\n"
    )
    print("| rows | case | forward | forward and backward | TFLOP/s needed | all layers | out | gradients |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    found = {}
    for layout in (whole, packed):
        found[layout.name], missing = measured(layout, inputs, options.rounds, whole=layout is whole)
        print("\n".join(table(shape, layout, found[layout.name], missing)), flush=True)
        free()
    print("\n" + ratio(shape, found[whole.name], found[packed.name], options.step_ms / 1e3), flush=True)


def asked(description: str | None) -> argparse.Namespace:
    """What is to be measured, by the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.6B", "135M"])
    parser.add_argument("--sequence", type=int, default=2048, help="tokens in a row")
    parser.add_argument("--tokens", type=int, default=16_384, help="in a micro batch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--step-ms", type=float, default=150.0, help="of a whole step")
    return parser.parse_args()


def main() -> None:
    """Prints the tables."""
    options = asked(__doc__)
    print(heading(), flush=True)
    for name in options.shapes:
        run(name, SHAPES[name], options)
        torch._dynamo.reset()


if __name__ == "__main__":
    main()
