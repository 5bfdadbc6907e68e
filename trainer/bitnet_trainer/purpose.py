"""What the pods of an order are for: they train the run's student, or tune its teacher before that.

Both are trained by the same course. What differs stands here, one class for each.
"""

import logging
from typing import Protocol

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitnet_crds.protocol import Evaluation, Order
from bitnet_trainer.checkpoint.resume import read_position
from bitnet_trainer.checkpoint.store import CheckpointStore
from bitnet_trainer.errors import BadInput, TeacherUnavailable
from bitnet_trainer.finish import Score, evaluation, sentence, tuned_evaluation, tuned_sentence
from bitnet_trainer.mirror import Mirror
from bitnet_trainer.models.convert import ConversionReport, convert
from bitnet_trainer.models.load import LoadedModel, load_weights
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.record import Baseline
from bitnet_trainer.setup import is_the_original, load_student, open_run_corpus, student_tokenizer
from bitnet_trainer.teacher import compare_vocabularies
from bitnet_trainer.tuned_teacher import TunedTeacher, tuning_of

_log = logging.getLogger(__name__)

TEACHER = "Teacher"
"""Kind of a tuned teacher among the artifacts of a report."""


class Purpose(Protocol):
    """What a job does with the course that it shares with every other. Every rank calls each method."""

    order: Order
    """As it is carried out."""

    def fetch(self) -> None:
        """Brings what an earlier process left in the run's bucket. On the first rank alone."""

    def result(self, ranks: Ranks) -> dict[str, str]:
        """What came out of an earlier job of this purpose, by kind, where nothing is left to do.

        Raises TeacherUnavailable where the run's teacher should have been tuned, and is not there.
        """

    def load(self) -> LoadedModel:
        """The model to train, as it was published. Raises what `models.load` raises, or TeacherUnavailable
        of a teacher."""

    def settle(self, data_fingerprint: str, store: CheckpointStore, ranks: Ranks) -> None:
        """Sees that what earlier jobs left goes with the text of this one."""

    def convert(self, model: nn.Module) -> ConversionReport:
        """Quantises the model, where it is to be. Raises BadInput as `models.convert` does."""

    def evaluated(self, baseline: Baseline, after: Score, teacher: float | None) -> tuple[Evaluation, str]:
        """The figures of the trained model and of the run's teacher, and a sentence of them."""

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        """Writes what is no export, and gives its addresses by kind. On the first rank alone."""


def purpose_of(order: Order) -> Purpose:
    """The purpose of an order."""
    return TeacherTuning(order) if order.purpose == "TuneTeacher" else StudentTraining(order)


class StudentTraining:
    """The run's own steps."""

    def __init__(self, order: Order) -> None:
        """Of an order to train."""
        self.order = order
        self._tuning = tuning_of(order)
        self._teacher = TunedTeacher(order) if self._tuning is not None else None

    def fetch(self) -> None:
        """As `Purpose.fetch`. The tuning's record says which commits of datasets it read."""
        Mirror(self.order).fetch()
        if self._tuning is not None:
            Mirror(self._tuning).fetch()

    def result(self, ranks: Ranks) -> dict[str, str]:
        """As `Purpose.result`: nothing but the loop knows whether steps are left."""
        if self._teacher is not None and self._found(self._teacher, ranks) is None:
            raise TeacherUnavailable(
                f"the teacher of this run is tuned first, and there is no tuned one in "
                f"{self._teacher.address}. Restore it, or begin the run anew, deleted and applied again or "
                "under another name."
            )
        return {}

    def load(self) -> LoadedModel:
        """As `Purpose.load`."""
        return load_student(self.order.spec)

    def settle(self, data_fingerprint: str, store: CheckpointStore, ranks: Ranks) -> None:  # noqa: ARG002
        """As `Purpose.settle`. Raises TeacherUnavailable where the teacher was tuned on something else."""
        if self._teacher is None:
            return
        found, wanted = self._found(self._teacher, ranks), self._teacher.hash_of(data_fingerprint)
        if found != wanted:
            raise TeacherUnavailable(
                f"the teacher in {self._teacher.address} was tuned as {found}, and this run asks for "
                f"{wanted}: teacher, spec.teacher.tune, text, tokenizer or seed changed since. Undo that "
                "change, or begin the run anew, deleted and applied again or under another name."
            )

    def convert(self, model: nn.Module) -> ConversionReport:
        """As `Purpose.convert`."""
        conversion = convert(model, self.order.spec.quantization)
        _log.info("%s", conversion)
        return conversion

    def evaluated(self, baseline: Baseline, after: Score, teacher: float | None) -> tuple[Evaluation, str]:
        """As `Purpose.evaluated`."""
        classifier = self.order.spec.classification is not None
        figures = evaluation(baseline, after, teacher, classifier=classifier)
        return figures, sentence(figures)

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:  # noqa: ARG002
        """As `Purpose.write`: exports are all there is."""
        return {}

    def _found(self, teacher: TunedTeacher, ranks: Ranks) -> str | None:
        return ranks.from_first(teacher.found() if ranks.first else None)


class TeacherTuning:
    """The teacher's steps before the run's: not quantised, on the run's text as the student's tokenizer reads
    it."""

    def __init__(self, order: Order) -> None:
        """Of an order to tune the teacher."""
        tuning = tuning_of(order)
        assert tuning is not None
        self.order, self._run = tuning, order
        self._teacher = TunedTeacher(order)
        self._found: str | None = None
        self._hash = ""

    def fetch(self) -> None:
        """As `Purpose.fetch`."""
        for order in (self._run, self.order):
            Mirror(order).fetch()

    def result(self, ranks: Ranks) -> dict[str, str]:
        """As `Purpose.result`. No model is loaded, which may be gone by now."""
        self._found = ranks.from_first(self._teacher.found() if ranks.first else None)
        if self._found is None:
            return {}
        corpus = open_run_corpus(self._run, student_tokenizer(self._run.spec), ranks)
        if self._found != self._teacher.hash_of(corpus.fingerprint()):
            return {}
        return {TEACHER: self._teacher.address}

    def load(self) -> LoadedModel:
        """As `Purpose.load`. The tokenizer is the student's, whose model is loaded to be compared with."""
        spec = self._run.spec
        asked = spec.teacher
        assert asked is not None
        student = load_student(spec)
        tokenizer, width = student.tokenizer, student.model.config.vocab_size
        del student
        source = f"{asked.from_}@{asked.revision}" if asked.revision else asked.from_
        try:
            model = load_weights(asked.from_, asked.revision)
        except BadInput as error:
            raise TeacherUnavailable(
                f"the teacher cannot be loaded: {error}", transient=error.transient
            ) from error
        if hasattr(model.config, "quantization_config"):
            raise TeacherUnavailable(
                f"the teacher {source} is quantised, and one is tuned in full precision. Name the model that "
                "it was made from, or remove spec.teacher.tune."
            )
        compare_vocabularies(
            asked.from_,
            asked.revision,
            model.config.vocab_size,
            width,
            None if is_the_original(spec) else tokenizer.get_vocab(),
        )
        return LoadedModel(model, tokenizer, source)

    def settle(self, data_fingerprint: str, store: CheckpointStore, ranks: Ranks) -> None:
        """As `Purpose.settle`. Checkpoints of a tuning that was ended and is wanted no more are set aside;
        those of one that was not ended are refused, as a run's are."""
        self._hash = self._teacher.hash_of(data_fingerprint)
        if self._found is None or not ranks.first:
            return
        _log.info("%s was tuned as %s, and is tuned anew", self._teacher.address, self._found)
        wanted = self.order.training_hash, data_fingerprint
        for checkpoint in store.committed():
            position = read_position(store, checkpoint)
            if (position.ledger_hash, position.data_fingerprint) != wanted:
                store.set_aside(checkpoint)

    def convert(self, model: nn.Module) -> ConversionReport:
        """As `Purpose.convert`: it stays as it is."""
        linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        return ConversionReport(
            (), tuple(linears), trained=sum(parameter.numel() for parameter in model.parameters())
        )

    def evaluated(self, baseline: Baseline, after: Score, teacher: float | None) -> tuple[Evaluation, str]:  # noqa: ARG002
        """As `Purpose.evaluated`."""
        return tuned_evaluation(after), tuned_sentence(baseline, after)

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        """As `Purpose.write`."""
        self._teacher.write(model, tokenizer, self._hash)
        return {TEACHER: self._teacher.address}
