"""One micro batch, and what student and teacher say of it: each is asked once, and only if it is needed."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor


class MicroBatch:
    """What objectives see of one forward pass. An objective that nobody weighs costs no forward pass."""

    def __init__(
        self,
        student: Callable[..., Any],
        input_ids: Tensor,
        labels: Tensor | None = None,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """
        Args:
            student: a causal LM like transformers', wrapped or not; its answer has `logits` (B, S, V).
            input_ids: (B, S) int64.
            labels: (B, S), not shifted, -100 where nothing is to be learned; the input itself if not given.
            teacher: input_ids (B, S) -> logits (B, S, V), where a teacher is loaded.
        """
        self.student = student
        self.input_ids = input_ids
        self.labels = input_ids if labels is None else labels
        self.teacher = teacher

    @cached_property
    def student_logits(self) -> Tensor:
        """(B, S, V), with gradient, of the input as it is."""
        logits: Tensor = self.student(input_ids=self.input_ids, use_cache=False).logits
        return logits

    @cached_property
    def teacher_logits(self) -> Tensor | None:
        """(B, S, V) of the same input, without gradient; None where there is no teacher."""
        return None if self.teacher is None else self.teacher(self.input_ids)
