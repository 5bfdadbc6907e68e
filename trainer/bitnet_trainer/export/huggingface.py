"""Export as a Hugging Face folder that stock transformers loads and runs quantised, with equal perplexity.

The format is transformers' `bitnet` with online `AutoBitLinear`: the latent weights are stored as they are,
and transformers quantises weights (absmean) and inputs (absmax, 8 bits) by the same formulas as BitLinear at
lambda = 1. The folder can be trained on. SubLN before all projections is AutoBitLinear's own; SubLN before
the output projections alone is in the class BitNetForCausalLM.

Packed, it is `bitnet` with offline `BitLinear`: byte r of a column holds the codes of the rows r, r + R,
r + 2R and r + 3R, R being a quarter of the rows, and `weight_scale` is what a product of codes is DIVIDED by
(transformers, integrations/bitnet.py). It divides after the product and not before, so logits are equal to
rounding.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BitNetQuantConfig, PreTrainedModel, PreTrainedTokenizerBase

from bitnet_trainer.export.folder import save_tokenizer, write_folder
from bitnet_trainer.export.stock import bitnet_form
from bitnet_trainer.export.stock import check_exportable as check_exportable
from bitnet_trainer.models.convert import ConversionReport
from bitnet_trainer.precision import at_least_float32
from bitnet_trainer.quantization.codes import quantize_weights
from bitnet_trainer.quantization.packing import pack_ternary

SCALE_CONVENTION = "latent weights; quantised weight = s * clip(round(W / s), -1, 1), s = max(mean|W|, 1e-5)"
"""Stands in config.json as `weight_scale_convention`: packed formats store 1/s or s, this one neither."""

PACKED_SCALE_CONVENTION = "quantised weight = codes / weight_scale, weight_scale = 1 / max(mean|W|, 1e-5)"
"""The same of a packed folder."""


def export_huggingface(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    report: ConversionReport,
    folder: Path,
    state_dict: Mapping[str, Tensor] | None = None,
    *,
    packed: bool = False,
) -> Path:
    """Writes the trained model, its config and its tokenizer.

    The folder appears whole or not at all: all is written beside it and renamed. An earlier export there is
    replaced. Reload with `from_pretrained(folder)` of AutoModelForCausalLM, or of the Auto class of the
    model's kind; transformers needs accelerate then.

    Args:
        model: a converted model, not wrapped.
        tokenizer: its tokenizer.
        report: what `convert` said of it; the linears that it left stay in full precision.
        folder: where to write; its parent is made if need be.
        state_dict: full weights by name where the model's own are sharded; else the model's own.
        packed: whether ternary matrices are stored as codes, 2 bits a weight, that are not trained on.

    Returns:
        `folder`.

    Raises:
        BadInput: the report is of another model, or stock transformers computes nothing equal to it.
        CheckpointError: the folder cannot be written, or holds files that are no export.
    """
    report.check_describes(model)
    check_exportable(model, report.quantization, ("HuggingFacePacked" if packed else "HuggingFace",))
    form = bitnet_form(model, report.quantization)
    weights: dict[str, Any] | None = None if state_dict is None else dict(state_dict)
    stock, stock_weights = model, weights
    if form is not None:
        stock = form.build(model, model.state_dict() if weights is None else weights)
        stock_weights = None

    def write(staged: Path) -> None:
        if packed:
            full = stock.state_dict() if stock_weights is None else stock_weights
            save_file(_packed(stock, full, report), staged / "model.safetensors", metadata={"format": "pt"})
            if stock.can_generate() and stock.generation_config is not None:
                stock.generation_config.save_pretrained(staged)
        else:
            stock.save_pretrained(staged, state_dict=stock_weights)
        _config(stock, model, report, packed).save_pretrained(staged)
        save_tokenizer(tokenizer, model, staged)

    return write_folder(folder, write)


def _packed(
    stock: PreTrainedModel, weights: Mapping[str, Tensor], report: ConversionReport
) -> dict[str, Tensor]:
    """The tensors of a packed folder by name, tied ones once."""
    once = {name for name, _ in stock.named_parameters()}
    twins = {name for name, _ in stock.named_parameters(remove_duplicate=False)} - once
    tensors = {name: weight for name, weight in weights.items() if name not in twins}
    for name in report.converted:
        codes, scale = quantize_weights(at_least_float32(tensors[f"{name}.weight"]))
        rows, width = codes.shape
        quarters = codes.view(4, rows // 4, width).permute(1, 2, 0)  # (R, in, 4): a byte's four codes
        tensors[f"{name}.weight"] = pack_ternary(quarters.reshape(rows // 4, 4 * width))
        tensors[f"{name}.weight_scale"] = (1 / scale).reshape(1)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _config(stock: PreTrainedModel, model: PreTrainedModel, report: ConversionReport, packed: bool) -> Any:
    """The stock class's config, with what makes its linears quantised."""
    config: Any = copy.deepcopy(stock.config)
    config.architectures = [type(stock).__name__]
    every = report.quantization.sub_ln == "AllProjections"
    config.quantization_config = {
        **BitNetQuantConfig(
            linear_class="bitlinear" if packed else "autobitlinear",
            quantization_mode="offline" if packed else "online",
            modules_to_not_convert=list(report.left),
            **({"use_rms_norm": True, "rms_norm_eps": model.config.rms_norm_eps} if every else {}),
        ).to_dict(),
        "weight_scale_convention": PACKED_SCALE_CONVENTION if packed else SCALE_CONVENTION,
    }
    # Weights that a shorter type rounds may change their ternary code: the dtype stays the trained one's.
    config.dtype = torch.float32
    return config
