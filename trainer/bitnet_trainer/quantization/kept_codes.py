"""Weights' codes computed once for several passes, instead of in each."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.int8_training import Int8Codes, int8_codes
from bitnet_trainer.triton_kernels import compiled_for


@contextmanager
def codes_kept(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, BitLinears that multiply codes use those of the weights as they are at the beginning.

    So an optimiser step quantises each weight once, however many micro batches it has, for a byte a weight.
    Nothing may change a weight inside.

    Args:
        layers: decoder layers. What quantises the weights of one is compiled once for all that are alike.
    """
    keeping: list[BitLinear] = []
    try:
        for layer in layers:
            own = [part for part in layer.modules() if isinstance(part, BitLinear) and part.has_codes]
            for part, codes in zip(own, _codes_of(*(part.weight for part in own)), strict=True):
                part.kept = codes
                keeping.append(part)
        yield
    finally:
        for part in keeping:
            part.kept = None


@torch.no_grad()
def _codes_of(*weights: Tensor) -> list[Int8Codes]:
    if not weights:
        return []
    codes: list[Int8Codes] = compiled_for(_quantized, weights[0].device)(*weights)
    return codes


def _quantized(*weights: Tensor) -> list[Int8Codes]:
    return [int8_codes(weight.detach()) for weight in weights]
