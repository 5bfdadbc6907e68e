"""What a phase minimises: one record an objective, as a person writes it."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bitnet_crds.errors import WrongValueError
from bitnet_crds.fields import Weight
from bitnet_crds.record import Record

Weighting = Literal["Fixed", "GradientRatio"]


class Objective(Record):
    """What every objective has."""

    _instead_of_auto: ClassVar[str] = "Write one, such as 1"

    weight: Weight
    """Factor in the total loss; 0 leaves the objective out, with all that prepares for it."""

    @field_validator("weight", mode="before")
    @classmethod
    def _no_word(cls, weight: Any) -> Any:
        """`auto` is what a person writes who means a weight found by measuring; the API has numbers alone."""
        if isinstance(weight, str) and weight.lower() == "auto":
            raise WrongValueError(f"a weight is a number, and {weight!r} is none", cls._instead_of_auto)
        return weight


class BalancedObjective(Objective):
    """An objective whose weight may be found by measuring."""

    _instead_of_auto = (
        "Write `weighting: GradientRatio` beside a weight such as 0.1, which is then the share of "
        "crossEntropy's gradient that this objective's is held at"
    )

    weighting: Weighting = "Fixed"
    """Fixed: weight is the factor in the total loss. GradientRatio: the factor is found while training, so
    that the norm of this objective's gradient is `weight` times that of crossEntropy's, as crossEntropy is
    weighted in the phase. It is measured as the phase begins, soon again while it settles, and then every
    50 steps."""


class CrossEntropy(Objective):
    """Next-token cross-entropy, shifted, mean over the step's tokens; of the text as it is, never masked."""


class MaskedDiffusion(BalancedObjective):
    """Masked diffusion: tokens are replaced by the mask token, and each is predicted from the position
    before it (token shift), mean over the step's masked tokens.

    A sequence's first and last token and padding are never masked. It has a forward pass of its own: other
    objectives see the text as it is. Sources: arXiv 2406.07524, arXiv 2509.26328.
    """

    mask_probability: float = Field(default=0.5, gt=0, lt=1)
    """Probability that a token is masked."""
    mode: Literal["Independent", "Complementary"] = "Independent"
    """Independent: each sequence once. Complementary: each sequence twice, the second time with the other
    tokens masked, so that each token is predicted once a step; twice the compute."""
    mask_token: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """The token that stands for a masked one, such as <|fim_pad|>: any that the vocabulary has and the text
    does not use. Without it the tokenizer's own mask token, where it has one."""


class TeacherLogits(BalancedObjective):
    """Distillation: T^2 * KL(teacher || student) over the vocabulary, mean over the step's tokens.

    Source: arXiv 1503.02531.
    """

    temperature: float = Field(default=1.0, gt=0, le=1000)
    """T, by which both sides' logits are divided. The loss grows with its square: 5 makes it 25 times as
    large."""
    top_k: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Only the teacher's K likeliest tokens are compared. Without it the whole vocabulary."""
    tail: Literal["Bucket", "Renormalized"] | None = None
    """With topK. Bucket (the default): all other tokens are one more outcome, so that mass outside the top K
    counts. Renormalized: both sides' top K alone, each made to sum to 1."""
    input: Literal["Clean", "Masked"] = "Clean"
    """What the student sees. Clean: the text. Masked: the masked text of this phase's maskedDiffusion,
    compared at the masked tokens with a teacher that sees the text (target concrete scores, arXiv
    2504.16431)."""

    @model_validator(mode="after")
    def _tail_of_a_top(self) -> "TeacherLogits":
        if self.tail is not None and self.top_k is None:
            raise WrongValueError(
                f"tail {self.tail!r} has no meaning without topK, since the whole vocabulary is compared",
                "Add topK, or remove it",
                field="tail",
            )
        return self


class AttentionRelations(BalancedObjective):
    """Distillation of how tokens relate: for A in Q, K and V of one layer, KL of softmax(A A^T / sqrt(d))
    between teacher and student, mean over relation heads and the step's tokens, summed over Q, K and V.

    Sources: MiniLMv2, arXiv 2012.15828; BitDistill, arXiv 2510.13998.
    """

    layer: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """The student's layer, from 0. Without it the one three quarters up. The teacher's is the one at the same
    relative depth."""
    relation_heads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Into how many heads Q, K and V are each split, of student and teacher alike. Without it as many as the
    student has key heads."""


class BlockAttention(AttentionRelations):
    """The same as attentionRelations within diagonal blocks of tokens, which costs S * blockSize instead of
    S^2."""

    block_size: int = Field(default=32, ge=2, le=65_536)
    """Tokens in a block; the last of a sequence may be shorter."""


class HiddenStates(BalancedObjective):
    """Distillation of hidden states: the distance between student's and teacher's after each layer, mean over
    the step's tokens. Both need the same hidden size; a teacher of another depth is taken at the same
    relative depth."""

    distance: Literal["MeanSquared", "Normalized", "Cosine"] = "MeanSquared"
    """MeanSquared: mean of squared differences. Normalized: the same after each is divided by its root mean
    square. Cosine: 1 - cosine."""
    layers: Literal["Uniform", "Progressive"] | None = None
    """How layers weigh, in sum 1. Uniform (the default): alike. Progressive: layer l, from 1, as l."""
    layer_weights: (
        Annotated[
            tuple[Annotated[float, Field(ge=0, le=1_000_000)], ...], Field(min_length=1, max_length=1024)
        ]
        | None
    ) = None
    """A weight for each of the student's layers, instead of `layers`; they are divided by their sum."""

    @model_validator(mode="after")
    def _one_way_of_weighing(self) -> "HiddenStates":
        if self.layer_weights is not None:
            if self.layers is not None:
                raise WrongValueError(
                    f"layers {self.layers!r} has no effect beside layerWeights",
                    "Remove one of the two",
                    field="layers",
                )
            if not any(self.layer_weights):
                raise WrongValueError(
                    "layerWeights are all 0", "Give some layer a weight above 0", field="layerWeights"
                )
        return self


class Classification(Objective):
    """Cross-entropy of a sequence's label, mean over the step's sequences; with spec.classification."""


class Objectives(Record):
    """What is minimised in a phase: the sum of weight * loss. An objective that is not named does not run."""

    cross_entropy: CrossEntropy | None = None
    masked_diffusion: MaskedDiffusion | None = None
    teacher_logits: TeacherLogits | None = None
    attention_relations: AttentionRelations | None = None
    block_attention: BlockAttention | None = None
    hidden_states: HiddenStates | None = None
    classification: Classification | None = None

    @model_validator(mode="after")
    def _something_is_minimised(self) -> "Objectives":
        if not any(self.weights().values()):
            raise WrongValueError(
                "no objective has a weight above 0",
                "Name one with a weight, such as crossEntropy: {weight: 1}",
            )
        return self

    @model_validator(mode="after")
    def _ratios_have_a_base(self) -> "Objectives":
        if self.cross_entropy is not None and self.cross_entropy.weight > 0:
            return self
        for name, objective in self.named().items():
            if isinstance(objective, BalancedObjective) and objective.weighting == "GradientRatio":
                raise WrongValueError(
                    f"{name} is weighed against crossEntropy's gradient, and crossEntropy has no weight here",
                    "Give crossEntropy a weight, or write `weighting: Fixed`",
                    field=f"{name}.weighting",
                )
        return self

    @model_validator(mode="after")
    def _masked_input_is_there(self) -> "Objectives":
        distilled = self.teacher_logits
        # Whatever its weight: in a transition it may have some left of the phase before.
        if distilled is None or distilled.input == "Clean":
            return self
        if self.masked_diffusion is None:
            raise WrongValueError(
                "teacherLogits compares masked tokens, and the phase names no maskedDiffusion to mask them",
                "Name maskedDiffusion (its weight may be 0), or write `input: Clean`",
                field="teacherLogits.input",
            )
        return self

    def named(self) -> dict[str, Objective]:
        """The objectives that are named, by their names in YAML."""
        return {
            type(self).model_fields[name].alias or name: objective
            for name in type(self).model_fields
            if (objective := getattr(self, name)) is not None
        }

    def weights(self) -> dict[str, float]:
        """Weight by objective name as in YAML, for those that are named."""
        return {name: objective.weight for name, objective in self.named().items()}


TEACHER_OBJECTIVES = frozenset({"teacherLogits", "attentionRelations", "blockAttention", "hiddenStates"})
"""Those that ask a teacher: it is in memory where one of them has weight."""
