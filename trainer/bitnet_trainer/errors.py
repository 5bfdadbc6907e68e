"""What can go wrong in the trainer: one base, and one class for each thing that its caller does about it.

The launcher turns each class into an exit code of `bitnet_crds.protocol`. A message says what was wrong
with its value, where, and the mend, in one paragraph.
"""

from bitnet_crds.protocol import Fault


class TrainerError(Exception):
    """Base of every error that the trainer raises on purpose."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        """`transient`: whether what is missing may be there another time, as where a server is silent."""
        super().__init__(message)
        self.transient = transient


class BadInput(TrainerError):
    """What a person gave cannot be trained on; trying again changes nothing."""


class ModelUnavailable(BadInput):
    """The student model is not where the run says, or is not a model that can be converted."""


class DataUnavailable(BadInput):
    """A text source is missing, empty or not readable."""


class TeacherUnavailable(TrainerError):
    """The teacher cannot be loaded or does not fit the student; training never goes on without it."""


class CheckpointError(TrainerError):
    """A checkpoint cannot be written, or one that is there cannot be read."""


class NonFinite(TrainerError):
    """Too many steps in a row had a loss or gradient that is not a finite number."""

    def __init__(self, message: str, fault: Fault) -> None:
        """`fault` says which steps."""
        super().__init__(message)
        self.fault = fault
