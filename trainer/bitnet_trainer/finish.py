"""After (and before) training: perplexity over all ranks, the export, the plot."""

import logging
import math
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitnet_crds.plan import Plan
from bitnet_crds.protocol import Evaluation, TeacherState
from bitnet_crds.spec import BitNetRunSpec
from bitnet_trainer.errors import TeacherUnavailable
from bitnet_trainer.evaluate import Perplexity, negative_log_likelihood, perplexity_of
from bitnet_trainer.export.huggingface import export_huggingface
from bitnet_trainer.models.convert import ConversionReport
from bitnet_trainer.quantization.warmup import set_lambda
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.record import Baseline
from bitnet_trainer.report import read_metrics
from bitnet_trainer.step import autocast
from bitnet_trainer.teacher import Teacher

_log = logging.getLogger(__name__)

_EVALUATED_TOKENS = {"cpu": 2_048, "cuda": 131_072}
"""Held-out tokens that perplexity is measured on, at most. A CPU takes seconds for a thousand."""


def evaluated_sequences(device: torch.device, sequence_length: int) -> int:
    """How many held-out sequences perplexity is measured on, at most."""
    return max(1, _EVALUATED_TOKENS[device.type] // sequence_length)


def measure(model: nn.Module, sequences: torch.Tensor, batch_size: int, ranks: Ranks) -> Perplexity:
    """Perplexity on sequences (N, S); each rank measures its share, and gets the figure for all."""
    own = sequences[ranks.rank :: ranks.world]
    total, tokens = 0.0, 0
    if len(own):
        with autocast(ranks.device):
            total, tokens = negative_log_likelihood(model, own, batch_size, ranks.device)
    (all_tokens,) = ranks.total(tokens)
    return perplexity_of(ranks.total_of(total), all_tokens)


def measure_baseline(model: nn.Module, sequences: torch.Tensor, batch_size: int, ranks: Ranks) -> Baseline:
    """Perplexity of the untrained model, converted, at lambda 0 and at lambda 1."""
    set_lambda(model, 0.0)
    original = measure(model, sequences, batch_size, ranks)
    set_lambda(model, 1.0)
    quantized = measure(model, sequences, batch_size, ranks)
    return Baseline(
        tokens=original.tokens, original=_finite(original.value), quantized=_finite(quantized.value)
    )


def measure_teacher(teacher: Teacher, sequences: torch.Tensor, batch_size: int, ranks: Ranks) -> float | None:
    """The teacher's perplexity, for comparison; None where it cannot be had any more.

    Training is over when it is asked for, so a teacher that is gone by then costs a figure and not the run.
    """
    try:
        teacher.load()
    except TeacherUnavailable as error:
        _log.warning("the teacher's perplexity is left out: %s", error)
    (missing,) = ranks.total(int(teacher.state is not TeacherState.READY))
    return None if missing else measure(teacher.model, sequences, batch_size, ranks).value


def evaluation(baseline: Baseline, after: Perplexity, teacher: float | None) -> Evaluation:
    """The figures as they stand in reports and status; `teacher` is none where there is none."""
    return Evaluation(
        tokens=after.tokens,
        perplexity_original=_decimal(baseline.original),
        perplexity_before=_decimal(baseline.quantized),
        perplexity_after=_decimal(_finite(after.value)),
        perplexity_teacher=None if teacher is None else _decimal(_finite(teacher)),
    )


def write_artifacts(
    folder: Path,
    spec: BitNetRunSpec,
    plan: Plan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversion: ConversionReport,
) -> dict[str, str]:
    """Writes the export and the loss plot into the run's folder; gives their paths by kind. For one rank."""
    artifacts = {}
    if "HuggingFace" in spec.export.formats:
        exported = export_huggingface(model, tokenizer, conversion, folder / "export" / "huggingface")
        artifacts["HuggingFace"] = str(exported)
    records = read_metrics(folder / "metrics.jsonl")
    if records:
        # Matplotlib takes a second to import, which no other rank and no earlier moment needs.
        from bitnet_trainer.plot import plot_loss

        artifacts["LossPlot"] = str(plot_loss(records, plan, folder / "loss.png"))
    return artifacts


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _decimal(value: float | None) -> str:
    """Enough digits to compare by; an untrained ternary model may be at 1e9."""
    return "inf" if value is None else f"{value:.2f}" if value < 1e6 else f"{value:.3g}"
