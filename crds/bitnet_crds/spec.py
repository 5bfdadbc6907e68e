"""What a person writes: BitNetRun and the parts of its spec, one frozen model a concept."""

from fractions import Fraction
from typing import Annotated, Literal, TypeVar

from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator

from bitnet_crds.agreement import disagreements
from bitnet_crds.data import Data
from bitnet_crds.errors import WrongValueError, WrongValuesError
from bitnet_crds.fields import Label, PositiveInt, refuse_duplicates
from bitnet_crds.health import Health
from bitnet_crds.locations import CheckpointAddress, ModelAddress
from bitnet_crds.machines import PhaseWorkers, Workers
from bitnet_crds.objectives import Objective, Objectives
from bitnet_crds.optimizer import Averaging, Optimizer, Schedule
from bitnet_crds.quantities import Percentage, Quantity, format_percentage
from bitnet_crds.record import Record
from bitnet_crds.tracking import Tracking
from bitnet_crds.tuning import Tune

API_GROUP = "bitnet.training"
API_VERSION = f"{API_GROUP}/v1alpha1"
KIND = "BitNetRun"

MAX_NAME_LENGTH = 40
"""Leaves room in a pod's 63 characters for `-<job>-worker-<index>`."""
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""A DNS-1035 label: a run's name becomes a Service's name, which may not begin with a digit."""

Curve = Literal["Linear", "Cosine"]
Preset = Literal[
    "BitNetLlama-1M", "BitNetLlama-135M", "BitNetLlama-350M", "BitNetLlama-0.6B", "BitNetLlama-1.7B"
]
"""Sizes of BitNetLlama, by their parameters; the first is for tests and first tries."""

ExportFormat = Literal[
    "HuggingFace", "HuggingFacePacked", "Packed", "GGUF", "GGUF-TQ2_0", "GGUF-TQ1_0", "GGUF-F16"
]
"""What a trained model is written as; `Export.formats` says what each is."""


class Pretrained(Record):
    """A pretrained model."""

    from_: Annotated[ModelAddress, Field(alias="from")]
    """Where the model is: hf://organisation/name, file:///path, pvc://claim/path or gs://bucket/path, the
    last three naming a Hugging Face folder or one .gguf file."""
    revision: str | None = Field(default=None, max_length=128)
    """Branch, tag or commit of a hub repository. Only with hf://."""

    @model_validator(mode="after")
    def _revision_only_of_a_hub(self) -> "Pretrained":
        return _checked_revision(self, self.from_, self.revision)


class Model(Record):
    """What becomes the student: a pretrained model, or a preset that is trained from scratch."""

    from_: Annotated[ModelAddress | None, Field(alias="from")] = None
    """A pretrained model: hf://organisation/name, file:///path, pvc://claim/path or gs://bucket/path, the
    last three naming a Hugging Face folder or one .gguf file."""
    revision: str | None = Field(default=None, max_length=128)
    """Branch, tag or commit of a hub repository. Only with hf://."""
    preset: Preset | None = None
    """Instead of `from`: the size of a BitNetLlama with random weights: grouped-query attention, squared-ReLU
    gates, SubLN before the output projections."""
    tokenizer: ModelAddress | None = None
    """With preset: where the tokenizer is; its vocabulary is the model's."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Model":
        if (self.from_ is None) == (self.preset is None):
            raise WrongValueError(
                "a student is either pretrained or made from a preset, and "
                + ("neither `from` nor `preset` is named" if self.from_ is None else "both are named"),
                "Write one of `from` and `preset`",
            )
        if (self.preset is None) != (self.tokenizer is None):
            raise WrongValueError(
                f"preset {self.preset} has no tokenizer"
                if self.preset
                else "the model brings its own tokenizer",
                "Write the address of one" if self.preset else "Remove it",
                field="tokenizer",
            )
        return self

    @model_validator(mode="after")
    def _revision_only_of_a_hub(self) -> "Model":
        return _checked_revision(self, self.from_, self.revision)


class LambdaWarmup(Record):
    """Blends quantisation in over the first steps: W_eff = W + lambda * (quantised(W) - W), lambda going from
    0 to 1. Without it lambda is 1 from the first step."""

    steps: PositiveInt
    """Steps until lambda is 1."""
    curve: Curve = "Linear"
    """Linear: step/steps. Cosine: (1 - cos(pi * step/steps)) / 2."""


class LowRankCorrection(Record):
    """Trains a low-rank matrix beside each frozen ternary one: y = Wq Q(x) + lambda * U (V^T x).

    Only what is new trains: U and V, the gains of subLN, and a classifier's head; the rest of the model is
    frozen. Source: arXiv 2412.07902.
    """

    ratio: float = Field(gt=0, le=1)
    """Rank as a share of the smaller of a matrix's sides, rounded down; a rank is at least 1."""
    init: Literal["Residual", "Kaiming"] = "Residual"
    """Residual: the best approximation of W - Wq of that rank. Kaiming: V random and U zero, so that the
    correction begins as nothing."""


class Quantization(Record):
    """How the student's projections become ternary. Their inputs have 8 bits a value and a scale a token."""

    weights: Literal["AbsMean", "Haar"] = "AbsMean"
    """AbsMean: one scale a matrix, the mean of its absolute values. Haar: each row is split into the low and
    high band of a Haar transform, each band with a scale of its own; rows must have an even length (arXiv
    2512.00862)."""
    lambda_warmup: LambdaWarmup | None = None
    sub_ln: Annotated[Literal["None", "OutputProjections", "AllProjections"], Field(alias="subLN")] = "None"
    """Where an RMSNorm is put before a projection. OutputProjections: attention output and MLP down
    projection, as BitDistill does. AllProjections: all seven. It changes what a pretrained model computes,
    which distillation has to mend."""
    low_rank_correction: LowRankCorrection | None = None


class Classification(Record):
    """A head that gives each sequence one of a few labels, instead of predicting its next token."""

    labels: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(min_length=2, max_length=1000)
    ]
    """The labels as the text's `label` field has them. Their order numbers the head's outputs."""

    @field_validator("labels")
    @classmethod
    def _labels_are_unique(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        refuse_duplicates("label", labels)
        return labels


class Budget(Record):
    """How much is trained, independent of how many machines do it."""

    tokens: Quantity
    """Training tokens in all, such as 10G. The last incomplete step is left out."""
    global_batch_size: int = Field(ge=1, le=1_000_000)
    """Sequences in one optimiser step, over all workers. Held constant through every resize."""


class Transition(Record):
    """Lets the objectives' weights come over from the phase before step by step; without it they change at
    once. Not in the first phase.

    weight = before + (own - before) * p; an objective that one of the two phases does not name has 0 there.
    One that fades out keeps the settings of the phase before, unless this phase names it too: then this
    phase's hold from its first step on, and its weighting has to be that of the phase before. A teacher stays
    in memory for the whole of a phase in which the last objective that asks it fades out.
    """

    steps: PositiveInt
    """Steps it takes, from the phase's first on. In the last of them the weights are the phase's own."""
    curve: Curve = "Linear"
    """In step k of them, from 1: Linear: p = k/steps. Cosine: p = (1 - cos(pi * k/steps)) / 2."""


class Phase(Record):
    """A stretch of the run with objectives of its own."""

    name: Label
    """Names the phase in status, metrics and plots."""
    until: Percentage
    """Share of all steps at which the phase ends. The last phase ends at 100%."""
    objectives: Objectives
    transition: Transition | None = None
    mixture: (
        Annotated[dict[str, Annotated[float, Field(ge=0, le=1_000_000)]], Field(max_length=64)] | None
    ) = None
    """Weights of the sources in this phase, by name, such as {web: 3, code: 1}, instead of those in
    spec.data; a source that is not named is not read. Not with a policy other than Static."""
    workers: PhaseWorkers | None = None


class Teacher(Pretrained):
    """The model distilled from, of the student's vocabulary. It is loaded as the first phase begins in which
    an objective that asks it has weight."""

    batch_size_factor: float | None = Field(default=None, gt=0, le=1)
    """The micro batch is multiplied by this, by 0.5 where it is left out, while the teacher is in memory;
    accumulation rises so that globalBatchSize holds. Not with microBatchSize: Auto."""
    resize: Literal["InPlace", "Rescale"] = "InPlace"
    """What happens to the pods where a phase with the teacher follows one without, or the other way round.
    InPlace: they go on, with another micro batch. Rescale: a checkpoint is written, they end, and others
    begin, in which the phase may name its own `workers`. No step is lost or repeated either way."""
    precision: Literal["Auto", "Float32", "BFloat16", "Int8"] = "Auto"
    """Its weights in memory. Auto: BFloat16 on a GPU, Float32 elsewhere. Int8: its linears have 8 bits a
    weight and a scale a row, the rest as Auto."""
    cache_logits: bool = False
    """Keeps its top-K logits of each sequence on disk, in the run's folder, and reads them when the sequence
    comes again instead of asking it. With topK in each teacherLogits; 8 bytes x topK a token."""
    tune: Tune | None = None

    @property
    def micro_batch_factor(self) -> float:
        """batchSizeFactor, or what it is where nobody wrote it."""
        return 0.5 if self.batch_size_factor is None else self.batch_size_factor


class CheckpointPolicy(Record):
    """Where checkpoints go, how often, and how many stay."""

    uri: CheckpointAddress
    """Where the run keeps them: a folder that every worker can write, file:///path or pvc://claim/path, or
    gs://bucket/path. The run adds its namespace and name, and puts run.json, metrics.jsonl, the loss plot and
    the exports beside them."""
    every_steps: PositiveInt = 200
    """Steps between checkpoints. One is always written at the end and when a pod is asked to stop."""
    keep: int = Field(default=3, ge=1, le=1000)
    """Newest checkpoints that stay."""
    required: bool = True
    """Whether the run ends where a checkpoint cannot be written: it would lose what it trains from then on.
    With false training goes on, the next checkpoint tries again, and the condition Checkpointing says why."""
    on_delete: Literal["Keep", "Remove"] = "Keep"
    """What becomes of all that the run keeps at `uri` when it is deleted. Keep: it stays, and a run of the
    same name goes on from it. Remove: once its pods have ended, a pod removes it, and the deleted run stays
    until that is done."""
    inference_weights: bool = False
    """Puts the weights into each checkpoint once more, as a model to run: ternary matrices packed, 2 bits a
    weight."""


class Export(Record):
    """What is written when training has ended."""

    formats: tuple[ExportFormat, ...] = Field(default=("HuggingFace",), max_length=8)
    """HuggingFace: a folder that stock transformers loads, runs quantised and can train on.
    HuggingFacePacked: the same to run alone, ternary matrices in 2 bits a weight. Stock transformers can run
    neither Haar nor lowRankCorrection, `subLN: OutputProjections` of Llamas alone, and no classifier made
    from a preset. Packed: a folder with the ternary matrices packed, 2 bits a weight, of any model, for this
    project to load. GGUF-TQ2_0 and GGUF-TQ1_0: one file that llama.cpp runs, ternary matrices in 2.06 or 1.69
    bits a weight; their rows must be multiples of 256. GGUF-F16: the same weights in 16 bits, rows of any
    length. GGUF: GGUF-TQ2_0 where the model can be written so, else GGUF-F16. llama.cpp runs pretrained
    Llama, Qwen2 and Qwen3 that predict tokens, without subLN and lowRankCorrection, and Haar in 16 bits
    alone. An empty list writes nothing."""

    @field_validator("formats")
    @classmethod
    def _formats_are_unique(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(formats)) < len(formats):
            raise WrongValueError(f"{', '.join(formats)} names one format twice", "Name each format once")
        return formats


class BitNetRunSpec(Record):
    """What a person asks for."""

    model: Model
    quantization: Quantization = Quantization()
    classification: Classification | None = None
    """Makes the student a classifier of sequences, trained by the objective `classification`."""
    data: Data
    budget: Budget
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    averaging: Averaging | None = None
    phases: tuple[Phase, ...] = Field(min_length=1, max_length=32)
    """The phases, in order."""
    teacher: Teacher | None = None
    workers: Workers
    checkpoint: CheckpointPolicy
    health: Health = Health()
    retries: int = Field(default=3, ge=0, le=1000)
    """How often in a row a failed segment is tried again from the last checkpoint. Preemptions do not count,
    and a checkpoint that was committed meanwhile begins the count anew."""
    suspend: bool = False
    """Whether the run is to wait: its pods write a checkpoint and end, and false lets it go on from there."""
    tracking: Tracking | None = None
    export: Export = Export()
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seeds the order of the data and anything random in training."""

    @field_validator("phases")
    @classmethod
    def _phases_are_in_order(cls, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        refuse_duplicates("phase", [phase.name for phase in phases])
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
    def _parts_agree(self) -> "BitNetRunSpec":
        if wrong := tuple(disagreements(self)):
            raise WrongValuesError(wrong)
        return self

    def objectives_in(self, index: int) -> dict[str, Objective]:
        """The objectives that have weight in some step of phase `index` (from 0), by name, with the settings
        that hold there: its own, and, of those that fade out of the phase before, that one's where it does
        not name them."""
        phase = self.phases[index]
        # A transition of one step is over in that step: nothing of the phase before is left in it.
        fades = index > 0 and phase.transition is not None and phase.transition.steps > 1
        before = self.phases[index - 1].objectives.named() if fades else {}
        own = phase.objectives.named()
        weighted = {name for named in (before, own) for name, objective in named.items() if objective.weight}
        return {name: objective for name, objective in (own | before | own).items() if name in weighted}


class Metadata(Record):
    """The part of Kubernetes' object metadata that a run depends on. Other keys are Kubernetes' own."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]
    namespace: Label = "default"
    uid: str = ""
    generation: int = 1
    labels: dict[str, str] = {}
    """Those that a queueing system reads go on to the run's jobs."""
    deletion_timestamp: str | None = None


class BitNetRun(Record):
    """The whole resource, less its status."""

    api_version: Literal["bitnet.training/v1alpha1"]
    kind: Literal["BitNetRun"]
    metadata: Metadata
    spec: BitNetRunSpec


Origin = TypeVar("Origin", Pretrained, Model)


def _checked_revision(model: Origin, address: str | None, revision: str | None) -> Origin:
    if revision is not None and not (address or "").startswith("hf://"):
        raise WrongValueError(
            f"revision {revision!r} has no meaning for {'a preset' if address is None else repr(address)}",
            "Remove it, or use an hf:// address",
            field="revision",
        )
    return model
