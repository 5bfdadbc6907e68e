"""PackedLinear: a trained BitLinear less its latent weight, 2 bits a weight."""

import torch
from torch import Tensor, nn

from bitnet_trainer.quantization.bitlinear import BitLinear, QuantizationLambda
from bitnet_trainer.quantization.low_rank import LowRankCorrection
from bitnet_trainer.quantization.packing import packed_width, unpack_ternary
from bitnet_trainer.quantization.schemes import SCHEMES, SchemeName


class PackedLinear(BitLinear):
    """Computes what a BitLinear computes at lambda = 1, from packed codes. It cannot be trained further.

    Instead of a weight it has the buffers `codes`, uint8 (out, ceil(in/4)), and `scale`, float32, of the
    scheme's shape; both are zeros until a state dict is loaded.
    """

    codes: Tensor
    scale: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        scheme: SchemeName,
        rms_norm: nn.RMSNorm | None = None,
        low_rank: LowRankCorrection | None = None,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            bias=False,
            device="meta",
            lam=QuantizationLambda(1.0),
            scheme=scheme,
            rms_norm=rms_norm,
            low_rank=low_rank,
        )
        del self.weight
        self.register_buffer("codes", torch.zeros(out_features, packed_width(in_features), dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(SCHEMES[scheme].scale_shape))
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features))

    def effective_weight(self) -> Tensor:
        """The dequantised weight (out, in), in the scale's dtype."""
        codes = unpack_ternary(self.codes, self.in_features).to(self.scale.dtype)
        return SCHEMES[self.scheme].dequantize(codes, self.scale)

    @property
    def _trained(self) -> None:
        return None

    @property
    def has_codes(self) -> bool:
        """None that are trained: there is no weight that a gradient could go to."""
        return False
