"""One micro batch, and what student and teacher say of it: each is asked once, and only if it is needed."""

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from bitnet_trainer.answer import Answer, Capture
from bitnet_trainer.batch import Rows
from bitnet_trainer.errors import TeacherUnavailable
from bitnet_trainer.objectives.masking import Masking
from bitnet_trainer.objectives.top_k import TopK

_NOTHING = Capture()


class LanguageModel(Protocol):
    """A model that objectives can ask: a wrapped student, or a teacher."""

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        capture: Capture,
        position_ids: Tensor | None,
        documents: Tensor | None,
    ) -> Answer:
        """input_ids (B, S), and attention_mask and position_ids (B, S) or none, all on the model's device;
        documents as in Rows."""


class AskedTeacher(Protocol):
    """What a micro batch asks of a loaded teacher."""

    @property
    def layers(self) -> int:
        """How many it has."""

    def answer(self, rows: Rows, capture: Capture) -> Answer:
        """One forward pass, without gradient."""

    def top_k(self, rows: Rows, answer: Callable[[], Answer], k: int, temperature: float) -> TopK:
        """Its K likeliest tokens at each position; `answer` is called where they have to be computed."""


class MicroBatch:
    """What objectives see. An objective that nobody weighs costs no forward pass."""

    def __init__(
        self,
        student: LanguageModel,
        rows: Rows,
        device: torch.device,
        *,
        layers: int = 0,
        teacher: AskedTeacher | None = None,
        capture: Capture = _NOTHING,
    ) -> None:
        """
        Args:
            student: the model that is trained, wrapped or not.
            rows: on the CPU.
            device: where student and teacher are.
            layers: how many the student has.
            teacher: where one is loaded.
            capture: what all objectives of the step together want kept of the forward pass on clean text.
        """
        self.cpu_rows = rows
        self.rows = rows.to(device)
        self.layers = layers
        self._device = device
        self._student = student
        self._teacher = teacher
        self._capture = capture
        self._masked: dict[Masking, tuple[Rows, Answer]] = {}

    @cached_property
    def student(self) -> Answer:
        """Of the text as it is, with gradient."""
        return self._asked(self.rows, self._capture)

    def masked(self, masking: Masking) -> tuple[Rows, Answer]:
        """The masked rows, on the device, and the student's answer to them, with gradient."""
        if masking not in self._masked:
            rows = masking(self.cpu_rows).to(self._device)
            self._masked[masking] = rows, self._asked(rows, _NOTHING)
        return self._masked[masking]

    @property
    def teacher_layers(self) -> int:
        """How many layers the teacher has."""
        return self._loaded_teacher.layers

    @cached_property
    def teacher(self) -> Answer:
        """The teacher's of the text as it is. Raises TeacherUnavailable where there is none."""
        capture = Capture(
            self._capture.hidden_states,
            frozenset(
                corresponding_layer(layer, self.layers, self.teacher_layers)
                for layer in self._capture.projections
            ),
        )
        return self._loaded_teacher.answer(self.rows, capture)

    def teacher_top_k(self, k: int, temperature: float) -> TopK:
        """The teacher's K likeliest tokens at each position of the text as it is, perhaps from its cache."""
        return self._loaded_teacher.top_k(self.rows, lambda: self.teacher, k, temperature)

    def _asked(self, rows: Rows, capture: Capture) -> Answer:
        return self._student(rows.input_ids, rows.attention_mask, capture, rows.position_ids, rows.documents)

    @property
    def _loaded_teacher(self) -> AskedTeacher:
        if self._teacher is None:
            raise TeacherUnavailable(
                "an objective that asks the teacher has weight in this phase but no teacher is loaded; "
                "load the one of spec.teacher before the phase begins"
            )
        return self._teacher


def corresponding_layer(layer: int, layers: int, others: int) -> int:
    """The layer at the same relative depth, from 0, of a model of `others` layers: the last for the last."""
    return max(0, -(-(layer + 1) * others // layers) - 1)
