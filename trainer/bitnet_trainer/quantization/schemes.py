"""The weight schemes that a run may name: how a matrix becomes ternary codes and scales, and back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from bitnet_trainer.quantization.codes import quantize_weights
from bitnet_trainer.quantization.haar import (
    dequantize_haar,
    haar_weight_quantization,
    haar_weight_quantization_no_scale,
)

SchemeName = Literal["AbsMean", "Haar"]
"""As in `spec.quantization.weights`."""


@dataclass(frozen=True)
class WeightScheme:
    """The two directions, of which neither has a gradient, and how the scales are to be read."""

    quantize: Callable[[Tensor], tuple[Tensor, Tensor]]
    """weight (out, in) -> codes (out, in) in {-1, 0, 1} and scales."""
    dequantize: Callable[[Tensor, Tensor], Tensor]
    """codes (out, in), scales -> weight (out, in)."""
    fake_quantize: Callable[[Tensor], Tensor]
    """weight (out, in) -> what the two make of it (out, in)."""
    scale_shape: tuple[int, ...]
    convention: str
    """What a scale means, in words for those who read it in a file."""


def _dequantize_absmean(codes: Tensor, scale: Tensor) -> Tensor:
    return codes * scale


def _fake_quantize_absmean(weight: Tensor) -> Tensor:
    codes, scale = quantize_weights(weight)
    return codes.mul_(scale)


SCHEMES: Mapping[SchemeName, WeightScheme] = MappingProxyType(
    {
        "AbsMean": WeightScheme(
            quantize_weights,
            _dequantize_absmean,
            _fake_quantize_absmean,
            scale_shape=(),
            convention="weight = scale * codes, scale = max(mean|W|, 1e-5)",
        ),
        "Haar": WeightScheme(
            haar_weight_quantization_no_scale,
            dequantize_haar,
            haar_weight_quantization,
            scale_shape=(2,),
            convention="weight = inverse Haar transform of [scale[0] * low codes | scale[1] * high codes] "
            "along a row, scale = max(mean|band|, 1e-5)",
        ),
    }
)
