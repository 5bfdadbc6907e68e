"""What a person writes: BitNetRun and the parts of its spec, one frozen model a concept."""

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema, field_validator, model_validator

from bitnet_crds.errors import WrongValueError
from bitnet_crds.locations import CheckpointAddress, DataAddress, ModelAddress
from bitnet_crds.quantities import Percentage, Quantity, format_percentage
from bitnet_crds.record import Record

API_GROUP = "bitnet.training"
API_VERSION = f"{API_GROUP}/v1alpha1"
KIND = "BitNetRun"

MAX_NAME_LENGTH = 40
"""Leaves room in a pod's 63 characters for `-<job>-worker-<index>`."""
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""A DNS-1035 label: a run's name becomes a Service's name, which may not begin with a digit."""

Label = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
            "maxLength": 63,
            "x-mend": "not a name: write lower-case letters, digits and hyphens, no hyphen first or last",
        }
    ),
]
PositiveInt = Annotated[int, Field(ge=1, le=1_000_000_000)]


class Model(Record):
    """A pretrained model. As spec.model it becomes the student."""

    from_: Annotated[ModelAddress, Field(alias="from")]
    """Where the model is: hf://organisation/name, file:///path or pvc://claim/path, the last two naming a
    Hugging Face folder or one .gguf file."""
    revision: str | None = Field(default=None, max_length=128)
    """Branch, tag or commit of a hub repository. Only with hf://."""

    @model_validator(mode="after")
    def _revision_only_of_a_hub(self) -> "Model":
        if self.revision is not None and not self.from_.startswith("hf://"):
            raise WrongValueError(
                f"revision {self.revision!r} has no meaning for {self.from_!r}",
                "Remove it, or use an hf:// address",
                field="revision",
            )
        return self


class LambdaWarmup(Record):
    """How quantisation is blended in: W_eff = W + lambda * (quantised(W) - W), lambda going from 0 to 1."""

    steps: PositiveInt
    """Steps until lambda is 1."""
    curve: Literal["Linear", "Cosine"] = "Linear"
    """Linear: step/steps. Cosine: (1 - cos(pi * step/steps)) / 2."""


class Quantization(Record):
    """How the student's projections become ternary.

    Weights: one absmean scale a matrix. Activations: 8 bits a token.
    """

    lambda_warmup: LambdaWarmup | None = None
    """Blends quantisation in over the first steps. Without it lambda is 1 from the first step."""


class Source(Record):
    """One source of training text."""

    name: Label
    """Names the source in metrics and errors."""
    uri: DataAddress
    """A .txt or .jsonl file (its `text` field), or a folder of them."""
    weight: float = Field(default=1.0, gt=0, le=1_000_000)
    """Share of the sequences that come from this source, relative to the others' weights."""


class Data(Record):
    """The text, and how it is cut into sequences."""

    sequence_length: int = Field(ge=8, le=1_048_576)
    """Tokens in one training sequence."""
    sources: tuple[Source, ...] = Field(min_length=1, max_length=64)
    """The sources, mixed by weight."""
    held_out: Percentage = Field(default="2%", validate_default=True)
    """The part of every source that is never trained on; perplexity is measured there before and after."""

    @field_validator("sources")
    @classmethod
    def _names_are_unique(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        _refuse_duplicates("source", [source.name for source in sources])
        return sources

    @field_validator("held_out")
    @classmethod
    def _something_is_trained_on(cls, held_out: Fraction) -> Fraction:
        if not 0 < held_out < 1:
            raise WrongValueError(
                f"{float(held_out):.0%} of the text held out", "Write more than 0% and less than 100%"
            )
        return held_out


class Budget(Record):
    """How much is trained, independent of how many machines do it."""

    tokens: Quantity
    """Training tokens in all, such as 10G. The last incomplete step is left out."""
    global_batch_size: int = Field(ge=1, le=1_000_000)
    """Sequences in one optimiser step, over all workers. Held constant through every resize."""


class Optimizer(Record):
    """AdamW (arXiv 1711.05101): betas 0.9 and 0.95; norms and biases are not decayed."""

    adam_learning_rate: float = Field(default=1e-3, gt=0, le=1)
    """Peak learning rate. Quantisation-aware training wants 5 to 10 times that of fine-tuning."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay."""
    gradient_clipping: float = Field(default=1.0, gt=0, le=1_000_000)
    """The gradient's global L2 norm is clipped to this."""


class Schedule(Record):
    """Learning rate: linear warmup, constant, linear decay to 0 (warmup-stable-decay, arXiv 2404.06395)."""

    warmup_steps: int = Field(default=0, ge=0, le=1_000_000_000)
    """Steps in which the learning rate rises from 0 to its peak."""
    decay_fraction: float = Field(default=0.2, ge=0, le=1)
    """Share of all steps, at the end, in which it falls linearly to 0."""


class CrossEntropy(Record):
    """Next-token cross-entropy, shifted, mean over the step's tokens."""

    weight: float = Field(ge=0, le=1_000_000)
    """Factor in the total loss."""


class TeacherLogits(Record):
    """Distillation: T^2 * KL(teacher || student) over the vocabulary, mean over the step's tokens.

    Source: arXiv 1503.02531.
    """

    weight: float = Field(ge=0, le=1_000_000)
    """Factor in the total loss. Above 0 the teacher is loaded for this phase."""
    temperature: float = Field(default=1.0, gt=0, le=1000)
    """T, by which both sides' logits are divided. The loss grows with its square: 5 makes it 25 times as
    large."""


class Objectives(Record):
    """What is minimised in a phase: the sum of weight * loss. An objective that is not named does not run."""

    cross_entropy: CrossEntropy | None = None
    teacher_logits: TeacherLogits | None = None

    @model_validator(mode="after")
    def _something_is_minimised(self) -> "Objectives":
        if not any(self.weights().values()):
            raise WrongValueError(
                "no objective has a weight above 0", "Name crossEntropy or teacherLogits with one"
            )
        return self

    def weights(self) -> dict[str, float]:
        """Weight by objective name as in YAML, for those that are named."""
        return {
            type(self).model_fields[name].alias or name: objective.weight
            for name in type(self).model_fields
            if (objective := getattr(self, name)) is not None
        }


class Phase(Record):
    """A stretch of the run with objectives of its own."""

    name: Label
    """Names the phase in status, metrics and plots."""
    until: Percentage
    """Share of all steps at which the phase ends. The last phase ends at 100%."""
    objectives: Objectives


class Teacher(Model):
    """The model distilled from, of the student's vocabulary. It is loaded when the first phase begins that
    gives teacherLogits weight."""

    batch_size_factor: float = Field(default=0.5, gt=0, le=1)
    """The micro batch is multiplied by this while the teacher is in memory; accumulation rises so that
    globalBatchSize holds."""


class Workers(Record):
    """The pods that train, and the processes in them."""

    count: int = Field(default=1, ge=1, le=4096)
    """Pods."""
    gpus_per_worker: int = Field(default=1, ge=0, le=64)
    """GPUs a pod asks for, one process each. With 0 a pod runs one process, on the CPU."""
    micro_batch_size: int = Field(ge=1, le=1_000_000)
    """Sequences in one forward and backward pass of one process."""
    template: dict[str, Any] | None = Field(
        default=None, json_schema_extra={"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    )
    """A pod template merged over the operator's: image, resources, node selector, volumes. The container
    that trains is named `pytorch`."""

    @property
    def processes_per_worker(self) -> int:
        """Ranks in one pod."""
        return max(1, self.gpus_per_worker)


class CheckpointPolicy(Record):
    """Where checkpoints go, how often, and how many stay."""

    uri: CheckpointAddress
    """A folder every worker can write: file:///path or pvc://claim/path. The run adds its namespace and
    name."""
    every_steps: PositiveInt = 200
    """Steps between checkpoints. One is always written at the end and when a pod is asked to stop."""
    keep: int = Field(default=3, ge=1, le=1000)
    """Newest checkpoints that stay."""


class NonFinite(Record):
    """What happens when a loss or gradient is not finite."""

    skip_steps: int = Field(default=3, ge=1, le=1000)
    """So many steps in a row are skipped (nothing of them reaches the weights); one more ends the run."""


class Health(Record):
    """When a run counts as sick."""

    non_finite: NonFinite = NonFinite()


class Export(Record):
    """What is written when training has ended."""

    formats: tuple[Literal["HuggingFace"], ...] = Field(default=("HuggingFace",), max_length=8)
    """HuggingFace: a folder that stock transformers loads. An empty list writes nothing."""


class BitNetRunSpec(Record):
    """What a person asks for."""

    model: Model
    quantization: Quantization = Quantization()
    data: Data
    budget: Budget
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    phases: tuple[Phase, ...] = Field(min_length=1, max_length=32)
    """The phases, in order."""
    teacher: Teacher | None = None
    workers: Workers
    checkpoint: CheckpointPolicy
    health: Health = Health()
    retries: int = Field(default=3, ge=0, le=1000)
    """How often a failed segment is tried again from the last checkpoint. Preemptions do not count."""
    export: Export = Export()
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seeds the order of the data and anything random in training."""

    @field_validator("phases")
    @classmethod
    def _phases_are_in_order(cls, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        _refuse_duplicates("phase", [phase.name for phase in phases])
        ends = [Fraction(0), *(phase.until for phase in phases)]
        for phase, begin in zip(phases, ends, strict=False):
            if phase.until <= begin:
                raise WrongValueError(
                    f"phase {phase.name!r} ends at {format_percentage(phase.until)} "
                    f"but begins at {format_percentage(begin)}",
                    "Order the phases by `until`, each later than the one before",
                )
        if ends[-1] != 1:
            raise WrongValueError(
                f"the last phase, {phases[-1].name!r}, ends at {format_percentage(ends[-1])}",
                "Write `until: 100%` there",
            )
        return phases

    @model_validator(mode="after")
    def _teacher_exactly_when_distilling(self) -> "BitNetRunSpec":
        distilling = [
            phase.name for phase in self.phases if phase.objectives.weights().get("teacherLogits", 0) > 0
        ]
        if self.teacher is None and distilling:
            raise WrongValueError(
                f"phase {distilling[0]!r} gives teacherLogits weight but no teacher is named",
                "Add spec.teacher, or set that weight to 0",
                field="teacher",
            )
        if self.teacher is not None and not distilling:
            raise WrongValueError(
                f"{self.teacher.from_!r} would never be used, since no phase gives teacherLogits a weight "
                "above 0",
                "Give it one, or remove spec.teacher",
                field="teacher",
            )
        return self


class Metadata(Record):
    """The part of Kubernetes' object metadata that a run depends on. Other keys are Kubernetes' own."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]
    namespace: str = "default"
    uid: str = ""
    generation: int = 1
    deletion_timestamp: str | None = None


class BitNetRun(Record):
    """The whole resource, less its status."""

    api_version: Literal["bitnet.training/v1alpha1"]
    kind: Literal["BitNetRun"]
    metadata: Metadata
    spec: BitNetRunSpec


def _refuse_duplicates(what: str, names: list[str]) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise WrongValueError(f"two {what}s are named {name!r}", f"Give each {what} a name of its own")
