"""Conversion of a model: attention and MLP projections become BitLinears, the rest stays."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn

from bitnet_crds.spec import Quantization
from bitnet_trainer.errors import BadInput
from bitnet_trainer.models.gated import GatedMLP
from bitnet_trainer.models.heads import take_heads_together
from bitnet_trainer.precision import at_least_float32
from bitnet_trainer.quantization.bitlinear import BitLinear, QuantizationLambda
from bitnet_trainer.quantization.low_rank import (
    LowRankCorrection,
    correction_rank,
    kaiming_correction,
    residual_correction,
)
from bitnet_trainer.quantization.schemes import SCHEMES

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
        "LlamaForSequenceClassification": _LLAMA_PROJECTIONS,
        "Qwen2ForCausalLM": _LLAMA_PROJECTIONS,
        "Qwen2ForSequenceClassification": _LLAMA_PROJECTIONS,
        "Qwen3ForCausalLM": _LLAMA_PROJECTIONS,
        "Qwen3ForSequenceClassification": _LLAMA_PROJECTIONS,
        "GemmaForCausalLM": _LLAMA_PROJECTIONS,
        "Gemma2ForCausalLM": _LLAMA_PROJECTIONS,
        "Gemma3ForCausalLM": _LLAMA_PROJECTIONS,
        "BitNetLlama": _LLAMA_PROJECTIONS,
        "BitNetLlamaForSequenceClassification": _LLAMA_PROJECTIONS,
    }
)
"""The tested architectures, and the last two parts of the names of the linears to convert in each layer.

A name stands here when a test converts a model of that class, trains it and finds its embeddings and head
as they were. SmolLM2 is a Llama.
"""

_OUTPUT_PROJECTIONS = ("self_attn.o_proj", "mlp.down_proj")
_WITH_SUB_LN = ("BitNetLlama", "BitNetLlamaForSequenceClassification")
"""Architectures that have SubLN before their output projections themselves."""

_DEFAULT = Quantization()


@dataclass(frozen=True)
class ConversionReport:
    """Every linear of a model by its full name, such as `model.layers.0.mlp.up_proj`."""

    converted: tuple[str, ...]
    """Linears that are BitLinears now, in the model's order."""
    left: tuple[str, ...]
    """Linears that stay in full precision, in order: the head, and what the table does not name."""
    quantization: Quantization = _DEFAULT
    """What was asked for."""
    norms: tuple[str, ...] = ()
    """RMSNorms that were added (SubLN), such as `model.layers.0.mlp.down_proj.rms_norm`."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Rank of the low-rank correction by converted linear; empty without one."""
    trained: int = 0
    """Numbers in parameters that are trained."""
    frozen: int = 0
    """Numbers in parameters that are not."""

    def __str__(self) -> str:
        """For a log: each line a fact, the same linear of all layers named once."""
        lines = [
            f"{len(self.converted)} linears became BitLinears ({self.quantization.weights}): "
            f"{_by_layer(self.converted)}",
            f"{len(self.left)} left in full precision: {_by_layer(self.left) or 'none'}",
        ]
        if self.norms:
            lines.append(f"{len(self.norms)} norms added (SubLN): {_by_layer(self.norms)}")
        if self.ranks:
            ranks = (f"{name} of rank {rank}" for name, rank in self.ranks.items())
            lines.append(f"{len(self.ranks)} low-rank corrections: {_by_layer(ranks)}")
        lines.append(f"{self.trained:,} parameters trained, {self.frozen:,} frozen")
        return "\n".join(lines)

    def check_describes(self, model: nn.Module) -> None:
        """Raises BadInput where a linear that was converted is none of this model's."""
        names = {name for name, _ in model.named_modules()}
        if strangers := [name for name in self.converted if name not in names]:
            raise BadInput(
                f"{type(model).__name__} has no {strangers[0]}; export with the report of its conversion"
            )


def convert(model: nn.Module, quantization: Quantization = _DEFAULT) -> ConversionReport:
    """Turns the projections of `model` into BitLinears in place, with one shared lambda of 0.

    The new layers hold the old parameters themselves: nothing is copied, an optimiser that holds them stays
    right, and state dicts have the same names. An MLP that is one becomes a `GatedMLP` of its own parts, and
    attention one of codes (`take_heads_together`). Embeddings and head are not touched: tied heads stay tied.
    SubLN's norms have a gain of 1 and the model's own epsilon. With a low-rank correction nothing is trained
    but what is new: its factors, SubLN's gains, and a classifier's `score`, which else would stay random. The
    decomposition runs where the model is, and is much faster on a GPU.

    A model that is refused is as it was.

    Raises:
        BadInput: the architecture is not in `ARCHITECTURES`, or a projection is not a plain linear, or
            there is none; the architecture has SubLN already; a width is odd, which Haar cannot transform.
    """
    architecture = type(model).__name__
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = _projections(architecture, linears)
    _check_expressible(architecture, chosen, quantization)
    normed = {name for name in chosen if _has_sub_ln(name, quantization)}
    # Where the weights are: elsewhere it would say that there are no kernels, and keep CUDA graphs away.
    lam = QuantizationLambda(0.0, next(iter(chosen.values())).weight.device)
    ranks = {}
    for name, linear in chosen.items():
        norm = _rms_norm(model, linear) if name in normed else None
        low_rank = _low_rank(linear, quantization)
        if low_rank is not None:
            ranks[name] = low_rank.rank
        model.set_submodule(name, BitLinear.from_linear(linear, lam, quantization.weights, norm, low_rank))
    for name in dict.fromkeys(name.rpartition(".")[0] for name in chosen):
        part = model.get_submodule(name)
        take_heads_together(part)
        if (mlp := GatedMLP.from_mlp(part)) is not None:
            model.set_submodule(name, mlp)
    if ranks:
        _train_the_new_alone(model)
    return ConversionReport(
        converted=tuple(chosen),
        left=tuple(name for name in linears if name not in chosen),
        quantization=quantization,
        norms=tuple(f"{name}.rms_norm" for name in chosen if name in normed),
        ranks=ranks,
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad),
    )


def _projections(architecture: str, linears: Mapping[str, nn.Linear]) -> dict[str, nn.Linear]:
    """Those of a model's linears that are to be converted, by name."""
    if architecture not in ARCHITECTURES:
        raise BadInput(
            f"no conversion is known for {architecture}; use a model of one of {', '.join(ARCHITECTURES)}"
        )
    projections = ARCHITECTURES[architecture]
    chosen = {name: linear for name, linear in linears.items() if _last_two(name) in projections}
    if not chosen:
        raise BadInput(
            f"no linear of this {architecture} was converted: none is named like {projections[0]}; "
            f"it has {', '.join(linears) or 'no linear at all'}; use an unquantised model"
        )
    for name, linear in chosen.items():
        # A subclass has a forward of its own (quantised, adapted), which a BitLinear would silently drop.
        if type(linear) is not nn.Linear:
            raise BadInput(
                f"{name} is a {type(linear).__name__}, not a plain linear, so it cannot be converted; "
                f"start from the unquantised {architecture}"
            )
    return chosen


def _check_expressible(
    architecture: str, chosen: Mapping[str, nn.Linear], quantization: Quantization
) -> None:
    if quantization.sub_ln != "None" and architecture in _WITH_SUB_LN:
        raise BadInput(
            f"quantization.subLN is {quantization.sub_ln}, and {architecture} has SubLN before its output "
            "projections already; write subLN: None, or leave it out"
        )
    for name, linear in chosen.items():
        if quantization.weights == "Haar" and linear.in_features % 2:
            raise BadInput(
                f"{name} has rows of {linear.in_features} values, and a Haar transform pairs neighbours, so "
                "their number must be even; write quantization.weights: AbsMean"
            )


def _has_sub_ln(name: str, quantization: Quantization) -> bool:
    if quantization.sub_ln == "OutputProjections":
        return _last_two(name) in _OUTPUT_PROJECTIONS
    return quantization.sub_ln == "AllProjections"


def _rms_norm(model: nn.Module, linear: nn.Linear) -> nn.RMSNorm:
    config: Any = model.config
    weight = linear.weight
    return nn.RMSNorm(linear.in_features, config.rms_norm_eps, device=weight.device, dtype=weight.dtype)


def _low_rank(linear: nn.Linear, quantization: Quantization) -> LowRankCorrection | None:
    asked = quantization.low_rank_correction
    if asked is None:
        return None
    weight = linear.weight.detach()
    rank = correction_rank(asked.ratio, *weight.shape)
    if asked.init == "Kaiming":
        return kaiming_correction(weight, rank)
    full, scheme = at_least_float32(weight), SCHEMES[quantization.weights]
    return residual_correction(full - scheme.fake_quantize(full), rank).to(weight.dtype)


def _train_the_new_alone(model: nn.Module) -> None:
    model.requires_grad_(False)
    layers = [module for module in model.modules() if isinstance(module, BitLinear)]
    new = [part for layer in layers for part in (layer.rms_norm, layer.low_rank)]
    for module in (*new, getattr(model, "score", None)):
        if module is not None:
            module.requires_grad_(True)


def _last_two(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _by_layer(names: Iterable[str]) -> str:
    """Names with the layer's number left out, each once, with how often it is there."""
    counts = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    return ", ".join(name if count == 1 else f"{name} ({count})" for name, count in counts.items())
