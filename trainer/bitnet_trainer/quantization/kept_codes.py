"""Weights' codes computed once for several passes, instead of in each."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.haar import HaarCodes, haar_codes
from bitnet_trainer.quantization.int8_training import Int8Codes, int8_codes
from bitnet_trainer.triton_kernels import compiled_for, has_kernels


@contextmanager
def codes_kept(layers: Iterable[nn.Module], *, in_place: bool = False) -> Iterator[None]:
    """Inside, BitLinears that compute with codes use those of the weights as they are at the beginning.

    So an optimiser step quantises each weight once, however many micro batches it has, for a byte a weight.
    Nothing may change a weight inside.

    Args:
        layers: decoder layers. What quantises the weights of one is compiled once for all that are alike.
        in_place: whether codes come to where those of the last time were, as a CUDA graph has to have them,
            and keep their memory outside. The shapes of the layers stay then.
    """
    keeping: list[BitLinear] = []
    try:
        for layer in layers:
            own = [part for part in layer.modules() if isinstance(part, BitLinear) and part.has_codes]
            for part, codes in zip(own, _codes_of(own), strict=True):
                part.kept = _placed(part, codes) if in_place else codes
                keeping.append(part)
        yield
    finally:
        for part in keeping:
            part.kept = None


def _placed(part: BitLinear, codes: Int8Codes | HaarCodes) -> Int8Codes | HaarCodes:
    if part.place is None:
        part.place = codes
    else:
        torch._foreach_copy_(list(part.place), list(codes))
    return part.place


@torch.no_grad()
def _codes_of(parts: Sequence[BitLinear]) -> list[Int8Codes | HaarCodes]:
    if not parts:
        return []
    device = parts[0].weight.device
    haars = [part.scheme == "Haar" for part in parts]
    weights = [part.weight for part in parts]
    codes: list[Int8Codes | HaarCodes] = compiled_for(_quantized, device)(weights, haars, has_kernels(device))
    return codes


def _quantized(weights: Sequence[Tensor], haars: Sequence[bool], kernel: bool) -> list[Int8Codes | HaarCodes]:
    """Codes of each, Haar's where that is so."""
    return [
        haar_codes(weight, kernel=kernel) if haar else int8_codes(weight.detach())
        for weight, haar in zip(weights, haars, strict=True)
    ]
