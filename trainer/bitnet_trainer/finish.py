"""After (and before) training: what the model is worth on held-out text, the exports, the plot."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitnet_crds.plan import Plan
from bitnet_crds.protocol import Evaluation, TeacherState
from bitnet_crds.spec import BitNetRunSpec
from bitnet_trainer.batch import Rows
from bitnet_trainer.errors import TeacherUnavailable
from bitnet_trainer.evaluate import count_correct, negative_log_likelihood, perplexity_of
from bitnet_trainer.export.formats import write_export
from bitnet_trainer.models.convert import ConversionReport
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.record import Baseline
from bitnet_trainer.report import read_metrics
from bitnet_trainer.step import autocast
from bitnet_trainer.teacher import Teacher

_log = logging.getLogger(__name__)

_EVALUATED_TOKENS = {"cpu": 2_048, "cuda": 131_072}
"""Held-out tokens that are measured on, at most. A CPU takes seconds for a thousand."""


def evaluated_sequences(device: torch.device, sequence_length: int) -> int:
    """How many held-out sequences are measured on, at most."""
    return max(1, _EVALUATED_TOKENS[device.type] // sequence_length)


@dataclass(frozen=True)
class Score:
    """How good a model is on held-out text: perplexity, or a classifier's accuracy."""

    value: float
    """Perplexity: infinite or NaN where the logits are. Accuracy: in [0, 1]."""
    count: int
    """Tokens or rows that it was measured on."""


def measure(model: nn.Module, held_out: Rows, batch_size: int, ranks: Ranks) -> Score:
    """Perplexity on rows of text, or accuracy on labelled ones; each rank measures its share."""
    own = held_out.share(ranks.rank, ranks.world)
    total: float
    with autocast(ranks.device):
        if own.classes is not None:
            total, count = count_correct(model, own, batch_size, ranks.device)
        else:
            total, count = negative_log_likelihood(model, own, batch_size, ranks.device)
    (count,) = ranks.total(count)
    total = ranks.total_of(total)
    if held_out.classes is not None:
        return Score(total / count, count)
    return Score(perplexity_of(total, count).value, count)


def measure_teacher(teacher: Teacher, held_out: Rows, batch_size: int, ranks: Ranks) -> float | None:
    """The teacher's perplexity, for comparison; None where it cannot be had any more.

    Training is over when it is asked for, so a teacher that is gone by then costs a figure and not the run.
    """
    try:
        teacher.load()
    except TeacherUnavailable as error:
        _log.warning("the teacher's perplexity is left out: %s", error)
    (missing,) = ranks.total(int(teacher.state is not TeacherState.READY))
    return None if missing else measure(teacher.model, held_out, batch_size, ranks).value


def evaluation(baseline: Baseline, after: Score, teacher: float | None, *, classifier: bool) -> Evaluation:
    """The figures as they stand in reports and status; `teacher` is none where there is none."""
    figures = baseline.original, baseline.quantized, _finite(after.value)
    if classifier:
        # Two digits would hide one example of several hundred.
        original, before, trained = (None if value is None else f"{value:.4f}" for value in figures)
        return Evaluation(
            examples=after.count, accuracy_original=original, accuracy_before=before, accuracy_after=trained
        )
    original, before, trained = map(_decimal, figures)
    return Evaluation(
        tokens=after.count,
        perplexity_original=original,
        perplexity_before=before,
        perplexity_after=trained,
        perplexity_teacher=None if teacher is None else _decimal(_finite(teacher)),
    )


def sentence(evaluated: Evaluation) -> str:
    """The figures in words."""
    if evaluated.accuracy_after is not None:
        return (
            f"held-out accuracy {evaluated.accuracy_original} before quantisation, "
            f"{evaluated.accuracy_before} quantised untrained, {evaluated.accuracy_after} trained"
        )
    return (
        f"held-out perplexity {evaluated.perplexity_original} before quantisation, "
        f"{evaluated.perplexity_before} quantised untrained, {evaluated.perplexity_after} trained"
    )


def tuned_evaluation(after: Score) -> Evaluation:
    """The figures of a tuned teacher; all others are a student's, which there is none of yet."""
    return Evaluation(tokens=after.count, perplexity_teacher=_decimal(_finite(after.value)))


def tuned_sentence(baseline: Baseline, after: Score) -> str:
    """What the tuning was worth, in words."""
    before, tuned = _decimal(baseline.original), _decimal(_finite(after.value))
    return f"the teacher's held-out perplexity is {before} as published and {tuned} tuned"


def write_artifacts(
    folder: Path,
    spec: BitNetRunSpec,
    plan: Plan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversion: ConversionReport,
) -> dict[str, str]:
    """Writes the exports and the loss plot into the run's folder; gives their paths by kind. For one rank."""
    artifacts: dict[str, str] = {}
    for name in spec.export.formats:
        artifacts[name] = str(write_export(name, folder / "export", model, tokenizer, conversion))
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
