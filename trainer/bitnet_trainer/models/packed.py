"""A trained model in a folder with its ternary matrices packed, 2 bits a weight, and loading it again.

Beside transformers' config.json and the tokenizer stand bitnet.json, which says how the matrices are to be
read, and model.safetensors: for each converted linear `<name>.codes` (`quantization.packing`) and
`<name>.scale`, and every other tensor under its own name, tied ones once.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bitnet_crds.record import Record
from bitnet_crds.spec import Quantization
from bitnet_trainer.errors import ModelUnavailable
from bitnet_trainer.export.folder import save_tokenizer, write_folder
from bitnet_trainer.models import sequence_classification  # noqa: F401  (tells the Auto classes of BitNetLlama)
from bitnet_trainer.models.convert import ConversionReport
from bitnet_trainer.precision import at_least_float32
from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.low_rank import LowRankCorrection
from bitnet_trainer.quantization.packed_linear import PackedLinear
from bitnet_trainer.quantization.packing import pack_ternary
from bitnet_trainer.quantization.schemes import SCHEMES, SchemeName

_DESCRIPTION, _WEIGHTS = "bitnet.json", "model.safetensors"


class PackedLayer(Record):
    """What a converted linear has beside its codes."""

    norm_epsilon: float | None
    """Of the RMSNorm before it (SubLN); none where there is no norm."""
    rank: int | None
    """Of its low-rank correction; none where there is none."""


class PackedFormat(Record):
    """The whole of bitnet.json."""

    version: Literal[1] = 1
    architecture: str
    """The model's class."""
    quantization: Quantization
    """What the run asked for: scheme, SubLN, low-rank correction."""
    scale_convention: str
    """How scales and codes make a weight."""
    layers: dict[str, PackedLayer]
    """The converted linears by their full names."""


def write_packed(
    model: PreTrainedModel,
    report: ConversionReport,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes what a trained model is at lambda = 1.

    The folder appears whole or not at all, as in `export.huggingface`.

    Args:
        model: a converted model, not wrapped.
        report: what `convert` said of it.
        folder: where to write; its parent is made if need be. An earlier export there is replaced.
        tokenizer: its tokenizer, if it is to come along.
        state_dict: full weights by name where the model's own are sharded; else the model's own.

    Returns:
        `folder`.

    Raises:
        BadInput: the report is of another model.
        CheckpointError: the folder cannot be written, or holds files that are no export.
    """
    report.check_describes(model)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BitLinear)}
    description = PackedFormat(
        architecture=type(model).__name__,
        quantization=report.quantization,
        scale_convention=SCHEMES[report.quantization.weights].convention,
        layers={
            name: PackedLayer(
                norm_epsilon=None if layer.rms_norm is None else layer.rms_norm.eps,
                rank=None if layer.low_rank is None else layer.low_rank.rank,
            )
            for name, layer in layers.items()
        },
    )
    tensors = _packed(model, layers, model.state_dict() if state_dict is None else state_dict)
    config: Any = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = torch.float32

    def write(staged: Path) -> None:
        config.save_pretrained(staged)
        (staged / _DESCRIPTION).write_text(description.model_dump_json(by_alias=True, indent=1))
        save_file(tensors, staged / _WEIGHTS, metadata={"format": "pt"})
        if tokenizer is not None:
            save_tokenizer(tokenizer, model, staged)

    return write_folder(folder, write)


def load_packed(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Loads what `write_packed` wrote, of an architecture that transformers' Auto classes know.

    The model has a `PackedLinear` for each BitLinear, is in evaluation mode and on the CPU, and computes in
    float32: its logits are bit for bit those of the trained model at lambda = 1, if that was in float32.

    Returns:
        The model, and its tokenizer where one is in the folder.

    Raises:
        ModelUnavailable: the folder is not there, is no packed model, or is not whole.
    """
    description = _described(folder)
    try:
        model = _empty(folder, description)
        tensors = load_file(folder / _WEIGHTS)
        for name, layer in description.layers.items():
            linear = model.get_submodule(name)
            model.set_submodule(name, _packed_linear(linear, layer, description.quantization.weights))
        _fill(model, tensors)
        tokenizer = (
            AutoTokenizer.from_pretrained(folder) if (folder / "tokenizer_config.json").is_file() else None
        )
    # Anything at all: the libraries that read configs and tokenizers have error classes of their own.
    except Exception as error:
        raise ModelUnavailable(
            f"the packed model in {folder} cannot be loaded: {error}; its files are not whole or not of one "
            "export: export it again"
        ) from error
    model.train(False)
    return model, tokenizer


def _packed(
    model: nn.Module, layers: Mapping[str, BitLinear], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors to store: codes and scale for each converted weight, all others, tied ones once."""
    once = {name for name, _ in model.named_parameters()}
    twins = {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
    tensors = {name: weight for name, weight in weights.items() if name not in twins}
    for name, layer in layers.items():
        codes, scale = SCHEMES[layer.scheme].quantize(at_least_float32(tensors.pop(f"{name}.weight")))
        tensors[f"{name}.codes"] = pack_ternary(codes)
        tensors[f"{name}.scale"] = scale
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _described(folder: Path) -> PackedFormat:
    try:
        return PackedFormat.model_validate_json((folder / _DESCRIPTION).read_text())
    except (OSError, ValueError) as error:
        raise ModelUnavailable(
            f"{folder} is no packed model: {_DESCRIPTION} cannot be read ({error}); "
            "name a folder that a run exported as Packed"
        ) from error


def _empty(folder: Path, description: PackedFormat) -> PreTrainedModel:
    """A model of the described class with random weights, not converted."""
    classifies = description.architecture.endswith("ForSequenceClassification")
    auto: Any = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    if type(model).__name__ != description.architecture:
        raise ValueError(
            f"config.json is of {type(model).__name__} and {_DESCRIPTION} of {description.architecture}"
        )
    return model


def _packed_linear(linear: Any, layer: PackedLayer, scheme: SchemeName) -> PackedLinear:
    rows, width = linear.weight.shape
    return PackedLinear(
        width,
        rows,
        linear.bias is not None,
        scheme,
        None if layer.norm_epsilon is None else nn.RMSNorm(width, layer.norm_epsilon),
        None
        if layer.rank is None
        else LowRankCorrection(torch.zeros(rows, layer.rank), torch.zeros(width, layer.rank)),
    )


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies all tensors in. Raises ValueError where one is missing, other than the twin of a tied one."""
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    own = model.state_dict()
    filled = {own[name].data_ptr() for name in tensors if name in own}
    absent = [name for name in missing if own[name].data_ptr() not in filled]
    if absent or unexpected:
        raise ValueError(f"{_WEIGHTS} lacks {absent or 'nothing'} and has {unexpected or 'nothing'} to spare")
