"""BitLinear, the reference in plain PyTorch: ternary weights, 8-bit activations, straight-through gradients.

Source: BitNet b1.58, arXiv 2402.17764. Lambda blends full precision (0) into quantised (1), so that a
pretrained model is not thrown off its weights at the first step.
"""

import torch
from torch import Tensor, nn

from bitnet_trainer.precision import at_least_float32, dtype_of_products
from bitnet_trainer.quantization.codes import quantize_activations
from bitnet_trainer.quantization.haar import HaarCodes, haar_codes, haar_weights
from bitnet_trainer.quantization.haar_training import haar_linear
from bitnet_trainer.quantization.int8_training import Int8Codes, PackedCodes, int8_linear
from bitnet_trainer.quantization.low_rank import LowRankCorrection
from bitnet_trainer.quantization.packing import unpack_ternary
from bitnet_trainer.quantization.schemes import SCHEMES, SchemeName
from bitnet_trainer.quantization.straight_through import straight_through_linear
from bitnet_trainer.triton_kernels import has_kernels


class QuantizationLambda(nn.Module):
    """The one lambda of a model, in [0, 1]: 0 is full precision, 1 is fully quantised.

    Every BitLinear of a model holds this same module. `value` is a 0-dim float64 tensor, so a new lambda
    makes torch.compile compile nothing again; it is in a module of its own because moving a model replaces
    buffers one module at a time, which would part layers that merely shared a tensor. It is not in state
    dicts: the ledger knows lambda at each step.
    """

    value: Tensor
    whole: bool
    """Whether it is 1. Known to the host, so that layers which need no blend compute none."""
    kernels: bool
    """Whether the device where it was set last runs our kernels: a compiled layer cannot ask."""

    def __init__(self, value: float = 0.0, device: torch.device | None = None) -> None:
        super().__init__()
        self.register_buffer(
            "value", torch.tensor(value, dtype=torch.float64, device=device), persistent=False
        )
        self.whole, self.kernels = value == 1, False

    def set(self, value: float) -> None:
        """Sets it, in place and on its device; the host waits for nothing."""
        self.value.fill_(value)
        self.whole, self.kernels = value == 1, has_kernels(self.value.device)


def blend(full: Tensor, quantized: Tensor, lam: QuantizationLambda) -> Tensor:
    """`full + lam * (quantized - full)`, without gradient.

    Exact at both ends: lam = 0 gives `full` and lam = 1 gives `quantized`, bit for bit. That is why it is not
    written as the formula reads, whose rounding error would part the trained model from the exported one.
    """
    quantized = quantized.detach()
    return quantized if lam.whole else torch.lerp(full.detach(), quantized, lam.value.to(full.dtype))


class BitLinear(nn.Linear):
    """A linear layer whose weights are ternary and whose inputs are 8-bit, as far as lambda says.

    `y = W_eff Q(x) + bias + lambda * U (V^T x)`, where x is the input, or its RMSNorm where the layer has one
    (SubLN), and U V^T is there where the layer has a low-rank correction, which sees x unquantised.

    Parameters, their names and their shapes are those of `nn.Linear`: weight (out, in), bias (out); then
    `rms_norm.weight` (in), as transformers' AutoBitLinear has it, `low_rank.u` (out, rank) and `low_rank.v`
    (in, rank). Scales are computed in float32 or better; products run in the input's dtype, or in autocast's.
    At lambda 1 on CUDA, under autocast to bfloat16, codes are what is kept of a pass: AbsMean's products are
    int8 x int8 (`int8_training`), Haar's bfloat16 (`haar_training`).
    """

    int8_backward = True
    """Whether such a layer of AbsMean's quantises the gradient that arrives, to multiply codes again."""

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
        self.kept: Int8Codes | PackedCodes | HaarCodes | None = None
        """The weight's codes, while `codes_kept` or `SharedWeights` has them."""
        self.place: Int8Codes | HaarCodes | None = None
        """Where `codes_kept` puts them, while they are to lie there each time."""
        self.whole: Tensor | None = None
        """What stands for a weight of which ranks hold parts, while `SharedWeights` has it; beside packed
        codes nothing in it is to be read."""

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
        """The weight (out, in) that the product uses: `W + lam * (Wq - W)`, at least float32, detached."""
        if isinstance(self.kept, PackedCodes):
            codes = unpack_ternary(self.kept.packed, self.in_features)
            return SCHEMES[self.scheme].dequantize(codes, self.kept.scale)
        weight = at_least_float32(self._all_of_it.detach())
        return blend(weight, self._quantized(weight), self.lam)

    def _quantized(self, weight: Tensor) -> Tensor:
        """Wq (out, in) of the weight, without gradient."""
        kernel = self.lam.kernels and weight.is_cuda and weight.dtype == torch.float32
        bands = self._kept_bands
        if bands is None and kernel and self.scheme == "Haar":
            bands = haar_codes(weight, kernel=True)
        if bands is not None:
            return haar_weights(*bands, weight.dtype, kernel=kernel)
        scheme = SCHEMES[self.scheme]
        if isinstance(self.kept, Int8Codes):
            return scheme.dequantize(*self.kept)
        return scheme.fake_quantize(weight)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        x = input
        if self.rms_norm is not None:
            x = self.rms_norm(x.to(self.rms_norm.weight.dtype))
        if self._by_codes(x):
            y = self._of_codes(x)
            y = y if self.bias is None else y + self.bias.to(y.dtype)
        else:
            x = at_least_float32(x)
            codes, codes_per_unit = quantize_activations(x)
            tokens = blend(x, codes.div_(codes_per_unit), self.lam)
            dtype = dtype_of_products(input)
            bias = None if self.bias is None else self.bias.to(dtype)
            y = straight_through_linear(
                x, self._trained, tokens.to(dtype), self.effective_weight().to(dtype), bias
            )
        if self.low_rank is not None:
            # Scaled by lambda, because at 0 there is no error yet that it could correct.
            y = y + self.lam.value.to(y.dtype) * self.low_rank(x.to(input.dtype))
        return y

    def _of_codes(self, x: Tensor) -> Tensor:
        """The product at lambda 1, by kernels and without bias."""
        if self.scheme == "Haar":
            return haar_linear(x, self._all_of_it, torch.bfloat16, self._kept_bands)
        assert not isinstance(self.kept, HaarCodes)  # which another scheme has
        return int8_linear(x, self._all_of_it, torch.bfloat16, self.kept, int8_backward=self.int8_backward)

    def is_int8_linear(self, x: Tensor) -> bool:
        """Whether its forward pass of x is `int8_linear` and no more, by int8 on the way back too, of the
        weight here or its codes, not packed: then what it is a part of may be computed as one function."""
        return (
            self._by_codes(x)
            and self.scheme == "AbsMean"
            and self.int8_backward
            and self.bias is None
            and self.rms_norm is None
            and self.low_rank is None
            and self.whole is None
            and not isinstance(self.kept, PackedCodes)
        )

    @property
    def has_codes(self) -> bool:
        """Whether passes take the weight's codes as they are now: a compiled blend quantises AbsMean's on
        the way, and has a pass of its own for Haar's."""
        return self.scheme == "Haar" or self.lam.whole or not self.lam.kernels

    @property
    def _trained(self) -> Tensor | None:
        """What the weight's gradient goes to."""
        return self._all_of_it

    @property
    def _kept_bands(self) -> HaarCodes | None:
        return self.kept if isinstance(self.kept, HaarCodes) else None

    @property
    def _all_of_it(self) -> Tensor:
        return self.weight if self.whole is None else self.whole

    def _by_codes(self, x: Tensor) -> bool:
        """Whether the product is one of codes: where there are kernels for it, and products are bfloat16."""
        return (
            x.is_cuda
            and self.has_codes
            and self.lam.whole
            and self.lam.kernels
            and torch.is_autocast_enabled("cuda")
            and torch.get_autocast_dtype("cuda") == torch.bfloat16
        )

    def extra_repr(self) -> str:
        """Shown where the model is printed."""
        return f"{super().extra_repr()}, scheme={self.scheme}"
