"""What is told of steps that were left out: what was not finite, and which sequences were in them."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from bitnet_crds.protocol import Checkpoint, Fault
from bitnet_crds.record import Report
from bitnet_trainer.batch import SequenceId
from bitnet_trainer.errors import NonFinite

FILE = "nonfinite.json"
"""In the run's folder, when a run has ended so."""
_IN_A_SENTENCE = 8
"""Stretches of sequences that a sentence names for a source, and steps that it names, at most; the file names
all."""


class SkippedStep(Report):
    """A step whose loss or gradient was not finite, and of which nothing was kept."""

    step: int
    """Steps completed with this one."""
    phase: str
    not_finite: tuple[str, ...]
    """What was not: objectives by name, `total`, `gradient`. The gradient alone: each loss was finite."""
    sequences: dict[str, tuple[str, ...]]
    """By source: the sequences of the whole step over all ranks, as stretches such as 7 or 12-15 of their
    indices; in a later epoch than the first, 2:12-15."""

    def sentence(self) -> str:
        """The step in words, cut down to what fits one."""
        texts = (
            f"{source} {', '.join(some[:_IN_A_SENTENCE])}"
            + (f" and {len(some) - _IN_A_SENTENCE} more" if len(some) > _IN_A_SENTENCE else "")
            for source, some in self.sequences.items()
        )
        return f"step {self.step} ({', '.join(self.not_finite)} not finite; {'; '.join(texts)})"


class NonFiniteRecord(Report):
    """What stands in nonfinite.json."""

    steps: tuple[SkippedStep, ...]
    """Those in a row that ended the run, as far as the process that ended took them."""
    checkpoint: Checkpoint | None
    """The newest committed one: nothing of these steps is in it."""

    def write(self, folder: Path) -> None:
        """Writes it whole or not at all."""
        pending = folder / f".{FILE}"
        pending.write_text(self.model_dump_json(by_alias=True, indent=2) + "\n")
        pending.replace(folder / FILE)

    def error(self, in_row: int, allowed: int) -> NonFinite:
        """The error that ends the run after `in_row` such steps, where `allowed` may be."""
        last = self.steps[-1]
        told = "; ".join(step.sentence() for step in self.steps[:_IN_A_SENTENCE])
        kept = (
            "There is no checkpoint yet."
            if self.checkpoint is None
            else f"The last good checkpoint is of step {self.checkpoint.step}, {self.checkpoint.uri}."
        )
        return NonFinite(
            f"loss or gradient was not finite in {in_row} steps in a row, up to step {last.step}, and "
            f"health.nonFinite.skipSteps allows {allowed}. None of them changed the weights. {kept} "
            f"Left out: {told}. "
            "Lower the optimizer's learning rates, lengthen schedule.warmupSteps, or look at the text of "
            f"those steps: {FILE} in the run's folder names all its sequences.",
            Fault(first_step=last.step - in_row, steps=in_row),
        )


def not_finite(loss: float, gradient_norm: float, means: Iterable[tuple[str, float]]) -> tuple[str, ...]:
    """Names of the figures that are no finite number; `means` are the objectives' losses."""
    named = (*means, ("total", loss), ("gradient", gradient_norm))
    return tuple(name for name, value in named if not math.isfinite(value))


def stretches(ids: Sequence[SequenceId], sources: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The sequences by source, in order, those that follow each other as one: 3, 7-9, 2:0-4."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    for id_ in sorted(ids, key=lambda id_: (id_.source, id_.epoch, id_.index)):
        own = found.setdefault(sources[id_.source], [])
        if own and own[-1][0] == id_.epoch and id_.index <= own[-1][2] + 1:
            own[-1] = (id_.epoch, own[-1][1], id_.index)
        else:
            own.append((id_.epoch, id_.index, id_.index))
    return {source: tuple(_stretch(*each) for each in own) for source, own in found.items()}


def _stretch(epoch: int, first: int, last: int) -> str:
    counted = f"{first}" if first == last else f"{first}-{last}"
    return f"{epoch + 1}:{counted}" if epoch else counted
