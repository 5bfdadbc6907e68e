"""The teacher: absent until the ledger's first step that needs it, then loaded, frozen and asked for logits.

A teacher that cannot be loaded raises; there is no path on which training goes on without it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bitnet_crds.protocol import TeacherState
from bitnet_trainer.errors import ModelUnavailable, TeacherUnavailable
from bitnet_trainer.models.load import load_vocabulary, load_weights


class Teacher:
    """The model distilled from, of the student's vocabulary."""

    def __init__(
        self,
        address: str,
        revision: str | None,
        student_vocabulary: int,
        device: torch.device,
        student_tokens: Mapping[str, int] | None = None,
    ) -> None:
        """Loads nothing yet.

        Args:
            address: as in `models.load.load_model`.
            revision: branch, tag or commit of a hub repository.
            student_vocabulary: V, the width of the student's logits.
            device: where the teacher will live; in bfloat16 on CUDA, in float32 elsewhere.
            student_tokens: the student's token ids by token, for the teacher's to be compared with; None
                where the teacher is the very model that the student began as.
        """
        self._address = address
        self._revision = revision
        self._student_vocabulary = student_vocabulary
        self._device = device
        self._student_tokens = student_tokens
        self._model: PreTrainedModel | None = None
        self._state = TeacherState.ABSENT

    @property
    def state(self) -> TeacherState:
        """Absent, Loading or Ready; may be read from another thread. A failed load leaves it Absent."""
        return self._state

    def load(self) -> None:
        """Loads and freezes the teacher; does nothing if it is there already.

        Raises:
            TeacherUnavailable: it cannot be loaded, does not fit the device, or its vocabulary is not the
                student's.
        """
        if self._model is not None:
            return
        self._state = TeacherState.LOADING
        try:
            self._model = self._loaded()
        finally:
            self._state = TeacherState.READY if self._model is not None else TeacherState.ABSENT

    def unload(self) -> None:
        """Frees the teacher's memory, for phases that do not need it."""
        self._model = None
        self._state = TeacherState.ABSENT

    @property
    def model(self) -> PreTrainedModel:
        """The loaded model. Raises TeacherUnavailable before `load`."""
        if self._model is None:
            raise TeacherUnavailable(
                f"the teacher {self._address} is asked for logits but is not loaded; load it before the phase"
            )
        return self._model

    @torch.no_grad()
    def __call__(self, input_ids: Tensor) -> Tensor:
        """Logits (B, S, V) for input_ids (B, S), without gradient; the same errors as `model`."""
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits

    def _loaded(self) -> PreTrainedModel:
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        try:
            model = load_weights(self._address, self._revision, dtype)
        except ModelUnavailable as error:
            raise TeacherUnavailable(f"the teacher cannot be loaded: {error}") from error
        vocabulary = model.config.vocab_size
        if vocabulary != self._student_vocabulary:
            raise TeacherUnavailable(
                f"the teacher {self._address} has a vocabulary of {vocabulary} tokens and the student one of "
                f"{self._student_vocabulary}, so their logits cannot be compared; "
                "name a teacher of the student's own family"
            )
        self._compare_tokens()
        try:
            torch.nn.Module.to(model, device=self._device)
        except torch.OutOfMemoryError as error:
            raise TeacherUnavailable(
                f"the teacher {self._address} does not fit beside the student on {self._device}: {error}; "
                "use a smaller teacher or larger GPUs"
            ) from error
        model.requires_grad_(False)
        return model

    def _compare_tokens(self) -> None:
        """Two vocabularies of one size may still mean other things by the same number."""
        if self._student_tokens is None:
            return
        tokens = load_vocabulary(self._address, self._revision)
        for token, number in (tokens or {}).items():
            if self._student_tokens.get(token) != number:
                raise TeacherUnavailable(
                    f"the teacher {self._address} has token {token!r} at {number} and the student at "
                    f"{self._student_tokens.get(token, 'none')}, so their logits speak of other tokens; "
                    "name a teacher of the student's own family"
                )
