"""The teacher: absent until the ledger's first step that needs it, then loaded, frozen and asked.

A teacher that cannot be loaded raises; there is no path on which training goes on without it.
"""

import copy
import json
import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import PreTrainedModel

from bitnet_crds.protocol import TeacherState
from bitnet_trainer.answer import Answer, Capture
from bitnet_trainer.batch import Rows
from bitnet_trainer.errors import BadInput, TeacherUnavailable
from bitnet_trainer.models.load import load_vocabulary, load_weights
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.top_k import TopK, top_k_of
from bitnet_trainer.quantization.int8_linear import quantize_to_int8
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.teacher_cache import LogitsCache, Question, fingerprint
from bitnet_trainer.triton_kernels import has_kernels

Precision = Literal["Auto", "Float32", "BFloat16", "Int8"]
"""As in spec.teacher.precision."""


class Teacher:
    """The model distilled from, of the student's vocabulary."""

    def __init__(
        self,
        address: str,
        revision: str | None,
        student_vocabulary: int,
        device: torch.device,
        student_tokens: Mapping[str, int] | None = None,
        precision: Precision = "Auto",
        cache: LogitsCache | None = None,
        largest_token: int = 0,
    ) -> None:
        """Loads nothing yet.

        Args:
            address: as in `models.load.load_model`.
            revision: branch, tag or commit of a hub repository.
            student_vocabulary: V, the width of the student's logits.
            device: where the teacher will live.
            student_tokens: the student's token ids by token, for the teacher's to be compared with; None
                where the teacher is the very model that the student began as.
            precision: of its weights in memory. Auto: bfloat16 on CUDA, float32 elsewhere. Int8: its linears
                have 8 bits a weight, the rest is as in Auto.
            cache: keeps its likeliest tokens of each sequence, where they are to be kept.
            largest_token: of the text that it is asked about, by id.
        """
        self._address = address
        self._revision = revision
        self._student_vocabulary = student_vocabulary
        self._device = device
        self._student_tokens = student_tokens
        self._precision = precision
        self._cache = cache
        self._largest_token = largest_token
        self._fingerprint = ""
        self._view: LanguageModel | None = None
        self._state = TeacherState.ABSENT

    @property
    def state(self) -> TeacherState:
        """Absent, Loading or Ready; may be read from another thread. A failed load leaves it Absent."""
        return self._state

    def load(self) -> None:
        """Loads and freezes the teacher; does nothing if it is there already.

        Raises:
            TeacherUnavailable: it cannot be loaded, does not fit the device, is laid out in another way than
                models that can be asked, its vocabulary is not the student's, or the text has tokens that it
                does not know.
        """
        if self._view is not None:
            return
        self._state = TeacherState.LOADING
        try:
            self._view = LanguageModel(self._loaded())
            if has_kernels(self._device):
                self._view.compile_layers()
        except BadInput as error:
            # Whatever is wrong with it, the teacher is what the run is to be told of.
            raise TeacherUnavailable(
                f"the teacher cannot be loaded: {error}", transient=error.transient
            ) from error
        finally:
            self._state = TeacherState.READY if self._view is not None else TeacherState.ABSENT

    def unload(self) -> None:
        """Frees the teacher's memory, for phases that do not need it."""
        self._view = None
        self._state = TeacherState.ABSENT

    def without_cache(self) -> "Teacher":
        """The same model, loaded as it is now, that keeps and replays nothing: for rows that are no text."""
        twin = copy.copy(self)
        twin._cache = None
        return twin

    @property
    def model(self) -> PreTrainedModel:
        """The loaded model. Raises TeacherUnavailable before `load`, as all below do."""
        return self._asked.model

    @property
    def layers(self) -> int:
        """How many decoder layers it has."""
        return self._asked.layers

    @torch.no_grad()
    def answer(self, rows: Rows, capture: Capture) -> Answer:
        """One forward pass of rows on its device, without gradient. CUDA's autocast is the caller's.

        Its logits have the student's width: outputs that stand for no token are cut off, or ruled out (-inf).
        """
        answer: Answer = self._asked(
            rows.input_ids, rows.attention_mask, capture, rows.position_ids, rows.documents
        )
        surplus = self._student_vocabulary - self._asked.model.config.vocab_size
        if not surplus:
            return answer
        # A negative padding cuts.
        return answer._replace(head=lambda x: F.pad(answer.head(x), (0, surplus), value=-math.inf))

    def top_k(self, rows: Rows, answer: Callable[[], Answer], k: int, temperature: float) -> TopK:
        """Its K likeliest tokens at each position (B, S) of rows, on its device.

        With a cache, rows of training text, which have ids, are replayed from there; where some of them are
        not kept yet, they are computed and then kept.

        Args:
            rows: on its device.
            answer: gives what `answer` says of these rows; called where they have to be computed.
            k: K.
            temperature: T of the normaliser.
        """

        def compute() -> TopK:
            said = answer()
            return top_k_of(said.hidden, said.head, k, temperature)

        if self._cache is None or not rows.ids:
            return compute()
        question = Question(self._fingerprint, self._device.type, k, temperature)
        return self._cache.top_k(rows, question, compute)

    @property
    def _asked(self) -> LanguageModel:
        if self._view is None:
            raise TeacherUnavailable(
                f"the teacher {self._address} is asked for logits but is not loaded; load it before the phase"
            )
        return self._view

    def _loaded(self) -> PreTrainedModel:
        model = load_weights(self._address, self._revision, self._dtype)
        named = compare_vocabularies(
            self._address,
            self._revision,
            model.config.vocab_size,
            self._student_vocabulary,
            self._student_tokens,
        )
        if not isinstance(getattr(model.base_model, "layers", None), torch.nn.ModuleList):
            raise TeacherUnavailable(
                f"the teacher {self._address} is a {type(model).__name__}, whose decoder layers are not "
                "where Llama's are, so it cannot be asked; name a teacher of the student's own family"
            )
        known = len(model.get_input_embeddings().get_parameter("weight"))
        if named is not None:
            # Rows beyond stand for no token.
            known = min(known, named)
        if self._largest_token >= known:
            raise TeacherUnavailable(
                f"the text has token {self._largest_token}, and the teacher {self._address} knows {known} "
                "tokens; name a teacher that knows all that the student's tokenizer makes of the text"
            )
        model.requires_grad_(False)
        if self._precision == "Int8":
            quantize_to_int8(model)
        if self._cache is not None:
            self._fingerprint = fingerprint(model, _architecture(model))
        try:
            torch.nn.Module.to(model, device=self._device)
        except torch.OutOfMemoryError as error:
            raise TeacherUnavailable(
                f"the teacher {self._address} does not fit beside the student on {self._device}: {error}; "
                "write `precision: Int8` in spec.teacher, use a smaller teacher, or larger GPUs"
            ) from error
        return model

    @property
    def _dtype(self) -> torch.dtype:
        if self._precision == "Float32":
            return torch.float32
        if self._precision == "BFloat16" or self._device.type == "cuda":
            return torch.bfloat16
        return torch.float32


def compare_vocabularies(
    address: str,
    revision: str | None,
    vocabulary: int,
    student_vocabulary: int,
    student_tokens: Mapping[str, int] | None,
) -> int | None:
    """How many tokens a teacher's tokenizer knows; None where it was not asked.

    Raises TeacherUnavailable where the same number may mean one token to a teacher and another to the
    student.

    Models of one family may have outputs of other widths, since some are padded: that is no difference,
    where the tokenizers show it.

    Args:
        address: of the teacher, as in `models.load.load_model`.
        revision: branch, tag or commit of a hub repository.
        vocabulary: the width of the teacher's logits.
        student_vocabulary: that of the student's.
        student_tokens: as in `Teacher`.
    """
    tokens = None if student_tokens is None else load_vocabulary(address, revision)
    for token, number in (tokens or {}).items():
        if student_tokens is not None and student_tokens.get(token) != number:
            raise TeacherUnavailable(
                f"the teacher {address} has token {token!r} at {number} and the student at "
                f"{student_tokens.get(token, 'none')}, so their logits speak of other tokens; "
                "name a teacher of the student's own family"
            )
    if vocabulary != student_vocabulary and not tokens:
        raise TeacherUnavailable(
            f"the teacher {address} has a vocabulary of {vocabulary} tokens and the student one of "
            f"{student_vocabulary}, and no tokenizer says which of them are the same; put the "
            "files of its tokenizer beside its weights, or name a teacher of the student's own family"
        )
    return 1 + max(tokens.values()) if tokens else None


def load_together(teacher: Teacher, ranks: Ranks) -> None:
    """Loads the teacher on every rank, or on none.

    Every rank calls this and tries, and hears how the others fared: none begins a phase whose teacher another
    rank lacks, and none waits for it there.

    Raises:
        TeacherUnavailable: some rank could not load it; on every rank, naming the first that could not and
            what it said. It is transient where that of each of them is.
    """
    failure: tuple[str, bool] | None = None
    try:
        teacher.load()
    except TeacherUnavailable as error:
        failure = str(error), error.transient
    failures: list[tuple[str, bool] | None] = [None] * ranks.world
    dist.all_gather_object(failures, failure, group=ranks.control)
    failed = {rank: said for rank, said in enumerate(failures) if said is not None}
    if failed:
        teacher.unload()
        first = min(failed)
        raise TeacherUnavailable(
            f"{len(failed)} of {ranks.world} ranks could not load it, so none goes on; "
            f"rank {first} says: {failed[first][0]}",
            transient=all(transient for _, transient in failed.values()),
        )


def _architecture(model: PreTrainedModel) -> str:
    """What decides, besides the weights, what a model computes; not where it was found."""
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    attention = model.config._attn_implementation
    return json.dumps([type(model).__name__, attention, config], sort_keys=True, default=str)
