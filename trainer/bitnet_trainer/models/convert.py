"""Conversion of a transformers causal LM: attention and MLP projections become BitLinears, the rest stays."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from bitnet_trainer.errors import BadInput
from bitnet_trainer.quantization.bitlinear import BitLinear, QuantizationLambda

_LLAMA_PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)

ARCHITECTURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "LlamaForCausalLM": _LLAMA_PROJECTIONS,
        "Qwen2ForCausalLM": _LLAMA_PROJECTIONS,
        "Qwen3ForCausalLM": _LLAMA_PROJECTIONS,
    }
)
"""The tested architectures, and the last two parts of the names of the linears to convert in each layer.

A name stands here when a test converts a model of that class, trains it and finds its embeddings and head
as they were. SmolLM2 is a Llama.
"""


@dataclass(frozen=True)
class ConversionReport:
    """Every linear of a model by its full name, such as `model.layers.0.mlp.up_proj`."""

    converted: tuple[str, ...]
    """Linears that are BitLinears now, in the model's order."""
    left: tuple[str, ...]
    """Linears that stay in full precision, in order: the head, and what the table does not name."""


def convert(model: nn.Module) -> ConversionReport:
    """Turns the projections of `model` into BitLinears in place, with one shared lambda of 0.

    The new layers hold the old parameters themselves: nothing is copied, an optimiser that holds them stays
    right, and state dicts have the same names. Embeddings and head are not touched: tied heads stay tied.

    Raises:
        BadInput: the architecture is not in `ARCHITECTURES`, or a projection is not a plain linear, or
            there is none.
    """
    architecture = type(model).__name__
    if architecture not in ARCHITECTURES:
        raise BadInput(
            f"no conversion is known for {architecture}; use a model of one of {', '.join(ARCHITECTURES)}"
        )
    projections = ARCHITECTURES[architecture]
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen = [(name, linear) for name, linear in linears if _last_two(name) in projections]
    if not chosen:
        raise BadInput(
            f"no linear of this {architecture} was converted: none is named like {projections[0]}; "
            f"it has {', '.join(name for name, _ in linears) or 'no linear at all'}; use an unquantised model"
        )
    for name, linear in chosen:
        # A subclass has a forward of its own (quantised, adapted), which a BitLinear would silently drop.
        if type(linear) is not nn.Linear:
            raise BadInput(
                f"{name} is a {type(linear).__name__}, not a plain linear, so it cannot be converted; "
                f"start from the unquantised {architecture}"
            )
    lam = QuantizationLambda(0.0)
    for name, linear in chosen:
        model.set_submodule(name, BitLinear.from_linear(linear, lam))
    converted = {name for name, _ in chosen}
    return ConversionReport(
        converted=tuple(name for name, _ in chosen),
        left=tuple(name for name, _ in linears if name not in converted),
    )


def _last_two(name: str) -> str:
    return ".".join(name.split(".")[-2:])
