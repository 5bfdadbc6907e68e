"""Weights' codes computed once for several passes, instead of in each."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import chain

import torch
from torch import Tensor, nn

from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.haar import HaarCodes, haar_codes
from bitnet_trainer.quantization.int8_training import Int8Codes, int8_codes
from bitnet_trainer.triton_kernels import compiled_for, has_kernels, suited


@contextmanager
def codes_kept(
    layers: Iterable[nn.Module], *, in_place: bool = False, only_at_once: bool = False
) -> Iterator[None]:
    """Inside, BitLinears that compute with codes use those of the weights as they are at the beginning.

    So an optimiser step quantises each weight once, however many micro batches it has, for a byte a weight.
    Nothing may change a weight inside.

    Args:
        layers: decoder layers. Where kernels can, three of them quantise the weights of all; else what
            quantises those of one layer is compiled once for all that are alike.
        in_place: whether codes come to where those of the last time were, as a CUDA graph has to have them,
            and keep their memory outside. The shapes of the layers stay then.
        only_at_once: whether nothing is kept where kernels cannot: a single pass does it as fast on the way.
    """
    by_layer = [[part for part in _bit_linears(layer) if part.has_codes] for layer in layers]
    everything = list(chain.from_iterable(by_layer))
    at_once = _suits_kernels(everything)
    compute, groups = (_codes_by_kernels, [everything]) if at_once else (_codes_of, by_layer)
    if only_at_once and not at_once:
        groups = []
    keeping: list[BitLinear] = []
    try:
        for parts in groups:
            for part, codes in zip(parts, compute(parts, in_place), strict=True):
                part.kept = codes
                keeping.append(part)
        yield
    finally:
        for part in keeping:
            part.kept = None


def _bit_linears(module: nn.Module) -> Iterator[BitLinear]:
    """Those of a module, or itself: twice as fast as by `modules()`, which looks out for shared ones."""
    if isinstance(module, BitLinear):
        yield module
    else:
        yield from chain.from_iterable(map(_bit_linears, module.children()))


def _suits_kernels(parts: Sequence[BitLinear]) -> bool:
    whole = all(part.scheme == "AbsMean" and (lam := part.lam).whole and lam.kernels for part in parts)
    return bool(parts) and whole and suited([part.weight for part in parts])


@torch.no_grad()
def _codes_of(parts: Sequence[BitLinear], in_place: bool) -> Sequence[Int8Codes | HaarCodes]:
    if not parts:
        return []
    device = parts[0].weight.device
    haars = [part.scheme == "Haar" for part in parts]
    weights = [part.weight for part in parts]
    codes: list[Int8Codes | HaarCodes] = compiled_for(_quantized, device)(weights, haars, has_kernels(device))
    return [_placed(part, own) for part, own in zip(parts, codes, strict=True)] if in_place else codes


def _codes_by_kernels(parts: Sequence[BitLinear], in_place: bool) -> list[Int8Codes]:
    # Imported where it is used: Triton takes long to start, and need not be installed.
    kernels = import_module("bitnet_trainer.quantization.kernels.weights")
    weights = [part.weight for part in parts]
    goals = [part.place for part in parts if isinstance(part.place, Int8Codes)] if in_place else []
    if len(goals) < len(parts):
        # A row of four each, so that each begins where kernels can read it at once.
        scales = torch.empty(len(parts), 4, dtype=torch.float32, device=weights[0].device)[:, 0].unbind()
        goals = [
            Int8Codes(torch.empty_like(weight, dtype=torch.int8), scale)
            for weight, scale in zip(weights, scales, strict=True)
        ]
    if in_place:
        for part, goal in zip(parts, goals, strict=True):
            part.place = goal
    kernels.int8_codes(weights, [goal.codes for goal in goals], [goal.scale for goal in goals])
    return goals


def _placed(part: BitLinear, codes: Int8Codes | HaarCodes) -> Int8Codes | HaarCodes:
    if part.place is None:
        part.place = codes
    else:
        torch._foreach_copy_(list(part.place), list(codes))
    return part.place


def _quantized(weights: Sequence[Tensor], haars: Sequence[bool], kernel: bool) -> list[Int8Codes | HaarCodes]:
    """Codes of each, Haar's where that is so."""
    return [
        haar_codes(weight, kernel=kernel) if haar else int8_codes(weight.detach())
        for weight, haar in zip(weights, haars, strict=True)
    ]
