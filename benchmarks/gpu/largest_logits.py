"""What MuonClip's largest attention logits cost: all, by torch or a kernel, and by the log-sum-exp."""

import argparse
import math
import statistics
from collections.abc import Callable, Mapping

import torch
from attention import asked, layouts
from shapes import SHAPES, Shape
from step import DEVICE, heading
from timing import timed
from torch import Tensor

from bitnet_trainer.documents import first_keys
from bitnet_trainer.models.attention_backends import AttentionShape
from bitnet_trainer.models.attention_logits import largest_logits, tile_maxima

REPEATS = 4


def exact(query: Tensor, key: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(H,) the largest logits and (B, H, S) the log-sum-exp, in float32, a row at a time."""
    groups = query.shape[1] // key.shape[1]
    largest, lse = [], []
    for q, k, seen in zip(query, key, mask.expand(len(query), -1, -1, -1), strict=True):
        keys = k.repeat_interleave(groups, dim=0).float()
        logits = (q.float() @ keys.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
        largest.append(logits.amax(dim=(1, 2)))
        lse.append(logits.logsumexp(dim=-1))
    return torch.stack(largest).amax(dim=0), torch.stack(lse)


def cases(
    query: Tensor, key: Tensor, begins: Tensor | None, mask: Tensor | None, lse: Tensor, largest: Tensor
) -> Mapping[str, tuple[Callable[[], Tensor], float]]:
    """What gives (H,) largest logits, by name, and the threshold above which it is exact."""
    scale = query.shape[-1] ** -0.5
    half = largest.median().item()

    def kernel(given: Tensor | None, threshold: float) -> tuple[Callable[[], Tensor], float]:
        return lambda: tile_maxima(query, key, begins, given, scale, threshold).amax(dim=(0, 2)), threshold

    return {
        "torch, all logits": (lambda: largest_logits(query, key, mask), -math.inf),
        "kernel, all logits": kernel(None, -math.inf),
        "kernel, every tile's log-sum-exp above": kernel(lse, -math.inf),
        "kernel, threshold at the median head's largest": kernel(lse, half),
        "kernel, no log-sum-exp above": kernel(lse, lse.max().item()),
        "the log-sum-exp alone": (lambda: lse.amax(dim=(0, 2)), math.inf),
    }


def wrong(found: Tensor, expected: Tensor, threshold: float) -> float:
    """The largest error of what is above the threshold, and infinite where a head is on the wrong side."""
    above = expected > threshold
    if (found[~above] > threshold).any():
        return math.inf
    return (found - expected).abs()[above].max().item() if above.any() else 0.0


def run(name: str, shape: Shape, options: argparse.Namespace) -> None:
    """Measures one shape, and prints it."""
    batch, length = options.tokens // options.sequence, options.sequence
    sizes = AttentionShape(batch, shape.heads, shape.key_heads, length, shape.head_dim)
    query, key, *_ = (each.detach() for each in sizes.random(DEVICE, torch.bfloat16))
    # A few queries that look hard at one key, as heads do whose logits grow.
    query = torch.where(torch.rand(batch, 1, length, 1, device=DEVICE) < 0.01, 4 * query, query)
    print(f"\n## {name}, a layer of {batch} x {length:,} tokens\n")
    print("| rows | case | a layer | all layers | of a step | error above the threshold |")
    print("| --- | --- | ---: | ---: | ---: | ---: |", flush=True)
    for layout in layouts(batch, length):
        whole = layout.name == "whole rows"
        mask = layout.mask()
        begins = None if whole else first_keys(layout.cu_seqlens, batch, length)
        largest, lse = exact(query, key, mask)
        for case, (action, threshold) in cases(
            query, key, begins, None if whole else mask, lse, largest
        ).items():
            try:
                error = wrong(action(), largest, threshold)
                action()
                took = [
                    timed(DEVICE, lambda action=action: [action() for _ in range(REPEATS)]) / REPEATS
                    for _ in range(options.rounds)
                ]
            # What cannot be had is a row that says so.
            except Exception as error:  # noqa: BLE001
                why = (str(error).splitlines() or [""])[0][:120]
                print(f"| {layout.name} | {case} | not measured: {type(error).__name__}: {why} | | | |")
                continue
            layers = statistics.median(took) * shape.layers
            print(
                f"| {layout.name} | {case} | {statistics.median(took) * 1e6:.0f} us | {layers * 1e3:.2f} ms "
                f"| {layers / options.step_ms * 1e3:.2%} | {error:.1e} |",
                flush=True,
            )


def main() -> None:
    """Prints the tables."""
    options = asked(__doc__)
    print(heading(), flush=True)
    for name in options.shapes:
        run(name, SHAPES[name], options)


if __name__ == "__main__":
    main()
