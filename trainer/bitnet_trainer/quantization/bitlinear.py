"""BitLinear, the reference in plain PyTorch: ternary weights, 8-bit activations, straight-through gradients.

Source: BitNet b1.58, arXiv 2402.17764. Lambda blends full precision (0) into quantised (1), so that a
pretrained model is not thrown off its weights at the first step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnet_trainer.precision import at_least_float32
from bitnet_trainer.quantization.codes import quantize_activations
from bitnet_trainer.quantization.low_rank import LowRankCorrection
from bitnet_trainer.quantization.schemes import SCHEMES, SchemeName


class QuantizationLambda(nn.Module):
    """The one lambda of a model, in [0, 1]: 0 is full precision, 1 is fully quantised.

    Every BitLinear of a model holds this same module. `value` is a 0-dim float64 tensor, so a new lambda
    makes torch.compile compile nothing again; it is in a module of its own because moving a model replaces
    buffers one module at a time, which would part layers that merely shared a tensor. It is not in state
    dicts: the ledger knows lambda at each step.
    """

    value: Tensor

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(value, dtype=torch.float64), persistent=False)


def blend(full: Tensor, quantized: Tensor, lam: Tensor) -> Tensor:
    """`full + lam * (quantized - full)`, with the gradient of the identity (straight-through estimator).

    Exact at both ends: lam = 0 gives `full` and lam = 1 gives `quantized`, bit for bit. That is why it is not
    written as the formula reads, whose rounding error would part the trained model from the exported one.
    """
    value = torch.lerp(full.detach(), quantized.detach(), lam.to(full.dtype))
    return value + (full - full.detach())


class BitLinear(nn.Linear):
    """A linear layer whose weights are ternary and whose inputs are 8-bit, as far as lambda says.

    `y = W_eff Q(x) + bias + lambda * U (V^T x)`, where x is the input, or its RMSNorm where the layer has one
    (SubLN), and U V^T is there where the layer has a low-rank correction, which sees x unquantised.

    Parameters, their names and their shapes are those of `nn.Linear`: weight (out, in), bias (out); then
    `rms_norm.weight` (in), as transformers' AutoBitLinear has it, `low_rank.u` (out, rank) and `low_rank.v`
    (in, rank). Scales are computed in float32 or better; products run in the input's dtype, or in autocast's.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        lam: QuantizationLambda | None = None,
        scheme: SchemeName = "AbsMean",
        rms_norm: nn.RMSNorm | None = None,
        low_rank: LowRankCorrection | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.lam = lam if lam is not None else QuantizationLambda(1.0)
        self.scheme: SchemeName = scheme
        self.rms_norm = rms_norm
        self.low_rank = low_rank

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        lam: QuantizationLambda,
        scheme: SchemeName = "AbsMean",
        rms_norm: nn.RMSNorm | None = None,
        low_rank: LowRankCorrection | None = None,
    ) -> "BitLinear":
        """A BitLinear that holds the very parameters of `linear`; nothing is copied."""
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            device="meta",
            lam=lam,
            scheme=scheme,
            rms_norm=rms_norm,
            low_rank=low_rank,
        )
        layer.weight = linear.weight
        layer.bias = linear.bias
        return layer.train(linear.training)

    def effective_weight(self) -> Tensor:
        """The weight (out, in) that the product uses: `W + lam * (Wq - W)`, at least float32."""
        weight = at_least_float32(self.weight)
        scheme = SCHEMES[self.scheme]
        return blend(weight, scheme.dequantize(*scheme.quantize(weight)), self.lam.value)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        x = input
        if self.rms_norm is not None:
            x = self.rms_norm(x.to(self.rms_norm.weight.dtype))
        x = at_least_float32(x)
        codes, codes_per_unit = quantize_activations(x)
        quantized = blend(x, codes / codes_per_unit, self.lam.value).to(input.dtype)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        y = F.linear(quantized, self.effective_weight().to(input.dtype), bias)
        if self.low_rank is not None:
            # Scaled by lambda, because at 0 there is no error yet that it could correct.
            y = y + self.lam.value.to(y.dtype) * self.low_rank(x.to(input.dtype))
        return y

    def extra_repr(self) -> str:
        """Shown where the model is printed."""
        return f"{super().extra_repr()}, scheme={self.scheme}"
