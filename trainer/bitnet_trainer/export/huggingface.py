"""Export as a Hugging Face folder that stock transformers loads and runs quantised, with equal perplexity.

The format is transformers' `bitnet` with online `AutoBitLinear`: the latent weights are stored as they are,
and transformers quantises weights (absmean) and inputs (absmax, 8 bits) by the same formulas as BitLinear at
lambda = 1. The folder can be trained on. SubLN before all projections is AutoBitLinear's own; SubLN before
the output projections alone is in the class BitNetForCausalLM.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BitNetQuantConfig, PreTrainedModel, PreTrainedTokenizerBase

from bitnet_trainer.export.folder import save_tokenizer, write_folder
from bitnet_trainer.export.stock import bitnet_form
from bitnet_trainer.export.stock import check_exportable as check_exportable
from bitnet_trainer.models.convert import ConversionReport

SCALE_CONVENTION = "latent weights; quantised weight = s * clip(round(W / s), -1, 1), s = max(mean|W|, 1e-5)"
"""Stands in config.json as `weight_scale_convention`: packed formats store 1/s or s, this one neither."""


def export_huggingface(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    report: ConversionReport,
    folder: Path,
    state_dict: Mapping[str, Tensor] | None = None,
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

    Returns:
        `folder`.

    Raises:
        BadInput: the report is of another model, or stock transformers computes nothing equal to it.
        CheckpointError: the folder cannot be written, or holds files that are no export.
    """
    report.check_describes(model)
    check_exportable(model, report.quantization, ("HuggingFace",))
    form = bitnet_form(model, report.quantization)
    weights: dict[str, Any] | None = None if state_dict is None else dict(state_dict)
    stock, stock_weights = model, weights
    if form is not None:
        stock = form.build(model, model.state_dict() if weights is None else weights)
        stock_weights = None

    def write(staged: Path) -> None:
        stock.save_pretrained(staged, state_dict=stock_weights)
        _config(stock, model, report).save_pretrained(staged)
        save_tokenizer(tokenizer, model, staged)

    return write_folder(folder, write)


def _config(stock: PreTrainedModel, model: PreTrainedModel, report: ConversionReport) -> Any:
    """The stock class's config, with what makes its linears quantised."""
    config: Any = copy.deepcopy(stock.config)
    every = report.quantization.sub_ln == "AllProjections"
    config.quantization_config = {
        **BitNetQuantConfig(
            linear_class="autobitlinear",
            quantization_mode="online",
            modules_to_not_convert=list(report.left),
            **({"use_rms_norm": True, "rms_norm_eps": model.config.rms_norm_eps} if every else {}),
        ).to_dict(),
        "weight_scale_convention": SCALE_CONVENTION,
    }
    # Weights that a shorter type rounds may change their ternary code: the dtype stays the trained one's.
    config.dtype = torch.float32
    return config
