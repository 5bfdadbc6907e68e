"""BitLinear, the reference in plain PyTorch: ternary weights, 8-bit activations, straight-through gradients.

Source: BitNet b1.58, arXiv 2402.17764. Lambda blends full precision (0) into quantised (1), so that a
pretrained model is not thrown off its weights at the first step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MINIMUM_SCALE = 1e-5
"""Floor of a mean or maximum that is divided by: a weight or token of zeros quantises to zeros, not NaN."""


class QuantizationLambda(nn.Module):
    """The one lambda of a model, in [0, 1]: 0 is full precision, 1 is fully quantised.

    Every BitLinear of a model holds this same module. `value` is a 0-dim float32 tensor, so a new lambda
    makes torch.compile compile nothing again; it is in a module of its own because moving a model replaces
    buffers one module at a time, which would part layers that merely shared a tensor. It is not in state
    dicts: the ledger knows lambda at each step.
    """

    value: Tensor

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(value, dtype=torch.float32), persistent=False)


def quantize_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Ternary codes and the scale of a weight matrix (absmean, per tensor).

    `s = max(mean|W|, 1e-5)`, `codes = clip(round(W/s), -1, 1)`; the quantised weight is `s * codes`.

    Args:
        weight: any shape, floating point.

    Returns:
        codes in {-1, 0, 1}, of the weight's shape and dtype, and the 0-dim scale s. Neither has a gradient.
    """
    weight = weight.detach()
    # Multiplying by 1/s and dividing again is how transformers rounds: an exported model has the same codes.
    inverse = 1 / weight.abs().mean().clamp(min=MINIMUM_SCALE)
    return (weight * inverse).round().clamp(-1, 1), 1 / inverse


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit codes of each token (absmax), and how many codes make a unit.

    `a = max(max|x|, 1e-5)`, `codes = clip(round(127 x/a), -128, 127)`; the quantised token is
    `codes / (127/a)`.

    Args:
        x: (..., D) floating point; each of the leading positions is a token.

    Returns:
        codes (..., D), whole numbers in x's dtype, and `127/a` (..., 1), by which codes are DIVIDED, as
        transformers does: multiplying by a/127 rounds otherwise. Neither has a gradient.
    """
    x = x.detach()
    codes_per_unit = 127 / x.abs().amax(dim=-1, keepdim=True).clamp(min=MINIMUM_SCALE)
    return (x * codes_per_unit).round().clamp(-128, 127), codes_per_unit


def blend(full: Tensor, quantized: Tensor, lam: Tensor) -> Tensor:
    """`full + lam * (quantized - full)`, with the gradient of the identity (straight-through estimator).

    Exact at both ends: lam = 0 gives `full` and lam = 1 gives `quantized`, bit for bit. That is why it is not
    written as the formula reads, whose rounding error would part the trained model from the exported one.
    """
    value = torch.lerp(full.detach(), quantized.detach(), lam.to(full.dtype))
    return value + (full - full.detach())


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class BitLinear(nn.Linear):
    """A linear layer whose weights are ternary and whose inputs are 8-bit, as far as lambda says.

    Parameters, their names and their shapes are those of `nn.Linear`: weight (out, in), bias (out). Scales
    are computed in float32 or better; the product runs in the input's dtype, or in autocast's.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        lam: QuantizationLambda | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.lam = lam if lam is not None else QuantizationLambda(1.0)

    @classmethod
    def from_linear(cls, linear: nn.Linear, lam: QuantizationLambda) -> "BitLinear":
        """A BitLinear that holds the very parameters of `linear`; nothing is copied."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta", lam=lam)
        layer.weight = linear.weight
        layer.bias = linear.bias
        return layer.train(linear.training)

    def effective_weight(self) -> Tensor:
        """The weight (out, in) that the product uses: `W + lam * (s * codes - W)`, at least float32."""
        weight = _at_least_float32(self.weight)
        codes, scale = quantize_weights(weight)
        return blend(weight, codes * scale, self.lam.value)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        x = _at_least_float32(input)
        codes, codes_per_unit = quantize_activations(x)
        x = blend(x, codes / codes_per_unit, self.lam.value).to(input.dtype)
        return F.linear(x, self.effective_weight().to(input.dtype), self.bias)
