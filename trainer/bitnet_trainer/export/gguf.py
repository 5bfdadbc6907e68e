"""Export as one GGUF file, which llama.cpp runs: ternary matrices in 1.69 or 2.06 bits a weight, or F16.

A file holds the weights that the trained model multiplies by at lambda = 1, whatever its format: ternary
codes times their scale. TQ2_0 and TQ1_0 keep the codes as they are and the scale, in each block of 256
weights, as the float16 nearest to it, so within 1 part in 2048; F16 rounds to the same weights. Inputs are
llama.cpp's affair: its kernels for ternary weights give them 8 bits and a scale for each 256 values, where
BitLinear has a scale a token, so logits agree to quantisation noise and not bit for bit.

Metadata and names are those of llama.cpp's own converter (ggml-org/llama.cpp, conversion/llama.py and
qwen.py; the formats: gguf-py, quants.py).
"""

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitnet_crds.spec import Quantization
from bitnet_trainer.errors import BadInput, CheckpointError
from bitnet_trainer.export.gguf_tokenizer import add_tokenizer
from bitnet_trainer.models.convert import ARCHITECTURES, ConversionReport
from bitnet_trainer.precision import at_least_float32
from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.schemes import SCHEMES


@dataclass(frozen=True)
class GGUFFormat:
    """How the converted matrices are stored. Other matrices are F16, gains and biases F32."""

    tensors: GGMLQuantizationType
    file: LlamaFileType

    @property
    def block(self) -> int:
        """Weights that share a scale: a row must have a multiple of them."""
        return gguf.GGML_QUANT_SIZES[self.tensors][0]


GGUF_FORMATS: Mapping[str, GGUFFormat] = MappingProxyType(
    {
        "GGUF-TQ2_0": GGUFFormat(GGMLQuantizationType.TQ2_0, LlamaFileType.MOSTLY_TQ2_0),
        "GGUF-TQ1_0": GGUFFormat(GGMLQuantizationType.TQ1_0, LlamaFileType.MOSTLY_TQ1_0),
        "GGUF-F16": GGUFFormat(GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    }
)
"""By their names in `spec.export.formats`, where `GGUF` leaves the choice to `format_of`."""

_ARCHITECTURES: Mapping[str, gguf.MODEL_ARCH] = MappingProxyType(
    {
        "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
        "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
        "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
    }
)
"""Each stands here when llama.cpp was seen to give its tokens the same probabilities."""

_STRETCHED_ROPES = ("linear", "llama3")
"""Rope types that are no more than other frequencies, which llama.cpp's Llama reads from the file."""


def gguf_obstacle(model: nn.Module, quantization: Quantization, name: str) -> str | None:
    """Why llama.cpp cannot run `model` in a format, and the mend; None where it can.

    Args:
        model: the student, not wrapped, converted or not.
        quantization: what it is, or will be, converted by.
        name: of the format, of `GGUF_FORMATS`, or `GGUF`.
    """
    architecture = type(model).__name__
    if architecture not in _ARCHITECTURES:
        return f"it is known to run {', '.join(_ARCHITECTURES)} and not {architecture}; remove {name}"
    if quantization.sub_ln != "None":
        return f"its {architecture} has no norm before a projection; remove {name}, or quantization.subLN"
    if quantization.low_rank_correction is not None:
        return f"it has no low-rank correction; remove {name}, or quantization.lowRankCorrection"
    name = format_of(model, quantization, name)
    if quantization.weights == "Haar" and GGUF_FORMATS[name].tensors is not GGMLQuantizationType.F16:
        return (
            "Haar weights are not ternary as they are multiplied by; write GGUF-F16 in its place, or "
            "quantization.weights: AbsMean"
        )
    return _config_obstacle(model) or _width_obstacle(model, name)


def format_of(model: nn.Module, quantization: Quantization, name: str) -> str:
    """The format of `GGUF_FORMATS` that a name is: `GGUF` is TQ2_0 where weights are ternary and their rows
    whole blocks, and F16 where they are not."""
    if name != "GGUF":
        return name
    ternary = quantization.weights == "AbsMean" and _width_obstacle(model, "GGUF-TQ2_0") is None
    return "GGUF-TQ2_0" if ternary else "GGUF-F16"


def _config_obstacle(model: Any) -> str | None:
    config = model.config
    if config.hidden_act != "silu":
        return f"its {type(model).__name__} has the activation silu and not {config.hidden_act}"
    if type(model).__name__ == "Qwen3ForCausalLM" and config.attention_bias:
        return "the attention of its Qwen3ForCausalLM has no biases, which this one has (attention_bias)"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return f"this export leaves out sliding-window attention, which this {type(model).__name__} has"
    rope = config.rope_parameters["rope_type"]
    stretched = _STRETCHED_ROPES if type(model).__name__ == "LlamaForCausalLM" else ()
    if rope not in ("default", *stretched):
        return f"this export knows no rope of type {rope} for {type(model).__name__}"
    return None


def _width_obstacle(model: nn.Module, name: str) -> str | None:
    block = GGUF_FORMATS[name].block
    ends = ARCHITECTURES[type(model).__name__]
    for layer, linear in model.named_modules():
        if layer.endswith(ends) and isinstance(linear, nn.Linear) and linear.in_features % block:
            fitting = [
                other for other, format in GGUF_FORMATS.items() if linear.in_features % format.block == 0
            ]
            return (
                f"{layer} has rows of {linear.in_features} weights, which are no multiple of {name}'s block "
                f"of {block}; formats that do fit: {', '.join(fitting)}, HuggingFace, Packed"
            )
    return None


def export_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    report: ConversionReport,
    file: Path,
    name: str,
    state_dict: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes the trained model and its tokenizer as one file, which appears whole or not at all.

    Args:
        model: a converted model, not wrapped.
        tokenizer: its tokenizer, a byte-level BPE.
        report: what `convert` said of it.
        file: where to write; its parent is made if need be. An earlier file there is replaced.
        name: the format, of `GGUF_FORMATS`, or `GGUF`.
        state_dict: full weights by name where the model's own are sharded; else the model's own.

    Returns:
        `file`.

    Raises:
        BadInput: the report is of another model, or llama.cpp computes nothing equal to it, or cannot take
            its text apart as its tokenizer does.
        CheckpointError: the file cannot be written.
    """
    report.check_describes(model)
    if (why := gguf_obstacle(model, report.quantization, name)) is not None:
        raise BadInput(f"llama.cpp cannot run the export as {name}: {why}")
    architecture = _ARCHITECTURES[type(model).__name__]
    form = GGUF_FORMATS[format_of(model, report.quantization, name)]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as scratch:
            staged = Path(scratch) / file.name
            with closing(gguf.GGUFWriter(staged, gguf.MODEL_ARCH_NAMES[architecture])) as writer:
                _add_metadata(writer, model, form)
                add_tokenizer(writer, tokenizer, model)
                weights = model.state_dict() if state_dict is None else state_dict
                for tensor, data, kind in _tensors(model, weights, form):
                    writer.add_tensor(tensor, data, raw_dtype=kind)
                writer.write_header_to_file()
                writer.write_kv_data_to_file()
                writer.write_tensors_to_file()
            staged.replace(file)
    except OSError as error:
        raise CheckpointError(
            f"the export cannot be written to {file}: {error}; "
            "make its folder writable, with room for the model"
        ) from error
    return file


def _add_metadata(writer: gguf.GGUFWriter, model: PreTrainedModel, format: GGUFFormat) -> None:
    config: Any = model.config
    head = _head_width(config)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(format.file)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _tensors(
    model: PreTrainedModel, weights: Mapping[str, Tensor], format: GGUFFormat
) -> Iterator[tuple[str, np.ndarray[Any, Any], GGMLQuantizationType]]:
    """Each tensor's name in llama.cpp, its bytes or numbers, and its type; tied ones once."""
    config: Any = model.config
    names = gguf.get_tensor_name_map(_ARCHITECTURES[type(model).__name__], config.num_hidden_layers)
    schemes = {
        f"{name}.weight": module.scheme
        for name, module in model.named_modules()
        if isinstance(module, BitLinear)
    }
    for name, parameter in model.named_parameters():
        weight = at_least_float32(weights[name].detach())
        kind = GGMLQuantizationType.F32 if parameter.dim() == 1 else GGMLQuantizationType.F16
        if name in schemes:
            scheme = SCHEMES[schemes[name]]
            weight, kind = scheme.dequantize(*scheme.quantize(weight)), format.tensors
        if type(model).__name__ == "LlamaForCausalLM":
            weight = _llama_rows(name, weight, config)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise BadInput(f"llama.cpp's {type(model).__name__} has no {name}; export another format")
        yield target, gguf.quants.quantize(weight.float().cpu().numpy(), kind), kind
    factors = _rope_factors(model)
    if factors is not None:
        yield "rope_freqs.weight", factors.float().cpu().numpy(), GGMLQuantizationType.F32


def _llama_rows(name: str, weight: Tensor, config: Any) -> Tensor:
    """Rows in llama.cpp's order. It rotates pairs of neighbours, and transformers a head's halves: row i of
    the first half and row i of the second become neighbours."""
    for projection, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if f"self_attn.{projection}." in name:
            halves = weight.view(heads, 2, _head_width(config) // 2, *weight.shape[1:])
            return halves.transpose(1, 2).reshape(weight.shape)
    return weight


def _rope_factors(model: Any) -> Tensor | None:
    """By what each frequency of a stretched rope is divided; None where there is nothing to divide by."""
    config = model.config
    if config.rope_parameters["rope_type"] == "default":
        return None
    head = _head_width(config)
    frequencies: Tensor = model.model.rotary_emb.inv_freq.double()  # (head/2)
    plain = torch.exp(
        -math.log(config.rope_parameters["rope_theta"])
        * torch.arange(0, head, 2, dtype=torch.float64, device=frequencies.device)
        / head
    )
    return plain / frequencies


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
