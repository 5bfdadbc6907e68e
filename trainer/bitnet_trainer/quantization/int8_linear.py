"""Weight-only int8 for models that are not trained, such as a teacher: a quarter of float32's memory."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnet_trainer.errors import BadInput


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and a scale a row, dequantised in the forward pass.

    `s_i = max_j |W_ij| / 127`, `codes = round(W / s)`: no weight is off by more than s_i / 2. Buffers alone:
    `codes` int8 (out, in), `scale` float32 (out, 1), `bias` (out) or None.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        largest = weight.abs().amax(dim=1, keepdim=True)
        # A row of zeros has codes of zeros, by any scale.
        scale = torch.where(largest > 0, largest / 127, 1)
        self.register_buffer("codes", (weight / scale).round().clamp(-127, 127).to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the input's dtype, or in autocast's."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, (self.codes * self.scale).to(input.dtype), bias)

    def extra_repr(self) -> str:
        """Shown where the model is printed."""
        return f"in_features={self.codes.shape[1]}, out_features={self.codes.shape[0]}"


def quantize_to_int8(model: nn.Module) -> int:
    """Replaces the linears in the decoder layers of a frozen model, in place, one at a time.

    Embeddings, norms and head stay as they are, and so do linears of another class.

    Args:
        model: without a parameter that requires a gradient; its layers are in an `nn.ModuleList`.

    Returns:
        How many linears were replaced.

    Raises:
        BadInput: a parameter requires a gradient, which codes cannot have, or there is no linear to replace.
    """
    if trained := [name for name, parameter in model.named_parameters() if parameter.requires_grad]:
        raise BadInput(
            f"{trained[0]} of {type(model).__name__} is trained, and 8-bit weights cannot be; "
            "call requires_grad_(False) first"
        )
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    linears = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and any(name.startswith(f"{layer}.") for layer in layers)
    ]
    if not linears:
        raise BadInput(
            f"{type(model).__name__} has no linear in a list of layers, so nothing would become smaller; "
            "leave it in bfloat16"
        )
    for name in linears:
        model.set_submodule(name, Int8Linear(model.get_submodule(name)))  # type: ignore[arg-type]
    return len(linears)
