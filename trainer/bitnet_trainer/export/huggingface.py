"""Export as a Hugging Face folder that stock transformers loads and runs quantised, with equal perplexity.

The format is transformers' `bitnet` with online `AutoBitLinear`: the latent weights are stored as they are,
and transformers quantises weights (absmean) and inputs (absmax, 8 bits) by the same formulas as BitLinear at
lambda = 1. The folder can be trained on.
"""

import copy
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import BitNetQuantConfig, PreTrainedModel, PreTrainedTokenizerBase

from bitnet_trainer.errors import BadInput, CheckpointError
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
    replaced. Reload with `AutoModelForCausalLM.from_pretrained(folder)`; transformers needs accelerate then.

    Args:
        model: a converted model, not wrapped.
        tokenizer: its tokenizer.
        report: what `convert` said of it; the linears that it left stay in full precision.
        folder: where to write; its parent is made if need be.
        state_dict: full weights by name where the model's own are sharded; else the model's own.

    Returns:
        `folder`.

    Raises:
        BadInput: the report is of another model.
        CheckpointError: the folder cannot be written, or holds files that are no export.
    """
    names = {name for name, _ in model.named_modules()}
    if strangers := [name for name in report.converted if name not in names]:
        raise BadInput(
            f"{type(model).__name__} has no {strangers[0]}; export with the report of its conversion"
        )
    # What is replaced is deleted: nothing but a model may be.
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} holds files that are no export; move them away, or export to another folder"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        _write(model, tokenizer, report, staged, state_dict)
        _put_in_place(staged, folder)
    except (OSError, SafetensorError) as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    report: ConversionReport,
    folder: Path,
    state_dict: Mapping[str, Tensor] | None,
) -> None:
    weights: dict[str, Any] | None = None if state_dict is None else dict(state_dict)
    model.save_pretrained(folder, state_dict=weights)
    config = copy.deepcopy(model.config)
    config.quantization_config = {
        **BitNetQuantConfig(
            linear_class="autobitlinear",
            quantization_mode="online",
            modules_to_not_convert=list(report.left),
        ).to_dict(),
        "weight_scale_convention": SCALE_CONVENTION,
    }
    # Weights that a shorter type rounds may change their ternary code: the dtype stays the trained one's.
    config.dtype = torch.float32
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # mkdtemp makes it readable by its owner alone.
    folder.chmod(0o755)


def _put_in_place(staged: Path, folder: Path) -> None:
    """Renames staged to folder. No folder can be renamed onto a full one, so an old one steps aside first."""
    if not folder.is_dir():
        staged.rename(folder)
        return
    old = staged.with_name(f"{staged.name}-old")
    folder.rename(old)
    staged.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _unwritable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the export cannot be written to {folder}: {error}; "
        "make its parent writable, with room for the model in float32"
    )
