"""What operator and trainer say to each other: the order, progress, the termination report, exit codes."""

import hashlib
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PositiveInt, model_validator

from bitnet_crds.errors import WrongValueError
from bitnet_crds.locations import parse_location
from bitnet_crds.plan import Plan
from bitnet_crds.record import Record, Report
from bitnet_crds.shapes import Shape
from bitnet_crds.spec import BitNetRunSpec

PROGRESS_PORT = 9400
"""Rank 0 serves /progress, /metrics and /healthz here, where it is looked for in a cluster; elsewhere where
BITNET_PORT says so, as for several runs on one machine."""
SCRATCH = "/var/cache/bitnet/runs"
"""Where a pod has its part of a run whose checkpoints are in a bucket: on the volume `cache`."""
TERMINATION_MESSAGE_LIMIT = 4096
"""Bytes that Kubernetes keeps of a container's termination message."""


class ExitCode(IntEnum):
    """What the exit code of a pod means. Below 128 a second try would end the same way, but for CRASHED;
    from 128 on it may help, as PyTorchJob's own restart policy `ExitCode` has it."""

    SUCCEEDED = 0
    CRASHED = 1
    """An error that nobody foresaw; the report holds its traceback's end."""
    BAD_INPUT = 2
    """The run's own words cannot be carried out."""
    MODEL_UNAVAILABLE = 3
    TEACHER_UNAVAILABLE = 4
    """Training never goes on without the teacher."""
    DATA_UNAVAILABLE = 5
    CHECKPOINT_UNAVAILABLE = 6
    """The checkpoint folder cannot be written or read."""
    NON_FINITE = 7
    """More steps in a row than spec.health.nonFinite.skipSteps had a loss or gradient that was not finite."""
    KILLED = 137
    """A rank was killed by SIGKILL: by the kernel, where memory ran out, or by whoever may."""
    PREEMPTED = 143
    """Asked to stop by SIGTERM; the report says which checkpoint was written."""
    OUT_OF_MEMORY = 201
    """The device's allocator, or Python's, had no more to give."""
    PEER_LOST = 200
    """Another rank went away; that rank's own exit code is the cause."""

    @property
    def label(self) -> str:
        """The name as it stands in status: `TeacherUnavailable`."""
        return "".join(word.capitalize() for word in self.name.split("_"))

    @property
    def retryable(self) -> bool:
        """Whether the same segment may well succeed when tried again."""
        return self >= 128 or self is ExitCode.CRASHED


def exit_code_label(code: int) -> str:
    """The name of any exit code, ours or not: 143 is `Preempted`, 134 is `Signal6`, 42 is `Exit42`."""
    if code < 0:
        # Python's subprocess writes death by signal 9 as -9, where a shell and Kubernetes write 137.
        code = 128 - code
    if code in {known.value for known in ExitCode}:
        return ExitCode(code).label
    return f"Signal{code - 128}" if 128 < code < 192 else f"Exit{code}"


PHASE_BOUNDARY = "PhaseBoundary"
"""Reason in the report of pods that ended well, with a checkpoint, where the next phase trains in others."""
TOLD_ANNOTATION = "bitnet.training/told"
"""Annotation of a pod with `Told` as JSON, which the pod reads as a file."""
TOLD_FILE = "/etc/bitnet-told/told.json"
"""Where a pod finds it, unless BITNET_TOLD says otherwise."""


class Checkpoint(Report):
    """A committed checkpoint."""

    step: int
    """Optimiser steps completed in it."""
    uri: str


class TeacherState(StrEnum):
    """Where the teacher stands."""

    ABSENT = "Absent"
    """Not in memory, and not needed now."""
    LOADING = "Loading"
    READY = "Ready"

    @classmethod
    def _missing_(cls, value: object) -> "TeacherState":  # noqa: ARG003
        return cls.ABSENT  # a newer trainer's word


class TrainerState(StrEnum):
    """What the trainer is doing."""

    STARTING = "Starting"
    LOADING_MODEL = "LoadingModel"
    PREPARING_DATA = "PreparingData"
    TRAINING = "Training"
    CHECKPOINTING = "Checkpointing"
    EVALUATING = "Evaluating"
    EXPORTING = "Exporting"
    FINISHED = "Finished"

    @classmethod
    def _missing_(cls, value: object) -> "TrainerState":  # noqa: ARG003
        """A newer trainer's word: were it an error, pods that train would count as not answering."""
        return cls.STARTING


class ObjectiveProgress(Report):
    """One objective's share in the last step."""

    raw: float
    """The loss itself."""
    weight: float
    weighted: float
    """weight * raw."""


class LossPoint(Report):
    """The loss over a stretch of steps of one phase."""

    step: int
    """Steps completed with the stretch's last one."""
    loss: float
    """The median of its losses."""


class MachineProgress(Report):
    """What the last steps cost the machine of the process that reports; none where it cannot be told."""

    step_seconds: float | None = None
    """Time of a step, a mean over the last few."""
    model_flops_utilization: float | None = None
    """Share of the GPUs' dense bfloat16 peak that the student's own arithmetic took, from 0 to 1."""
    device_peak_bytes: int | None = None
    """Largest GPU memory in tensors since the process began, or last tried what fits (Auto)."""
    device_reserved_bytes: int | None = None
    """GPU memory that the process holds."""
    host_peak_bytes: int | None = None
    """Largest resident memory of the process."""


class Progress(Report):
    """What rank 0 answers at /progress. Steps are counted: `step` have been completed."""

    state: TrainerState = TrainerState.STARTING
    begun_step: int | None = None
    """Steps completed where this process began: 0, or its checkpoint's; none before it knows."""
    prepared_tokens: int = 0
    """Tokens that this process made of text before it trained, as far as it is."""
    step: int = 0
    total_steps: int
    phase: str
    """Name of the phase of spec.phases being trained."""
    loss: float | None = None
    """Total loss of the last step that was finite."""
    objectives: dict[str, ObjectiveProgress] = {}
    mixture: dict[str, float] = {}
    """Share of the sequences by source of text, as in effect."""
    tokens: int = 0
    tokens_per_second: float | None = None
    learning_rate: float = 0.0
    """AdamW's."""
    muon_learning_rate: float | None = None
    """Muon's, with MuonClip."""
    quantization_lambda: float = 0.0
    gradient_norm: float | None = None
    largest_attention_logit: float | None = None
    """Over all heads of the last step, in the weights before its update; with MuonClip."""
    clipped_heads: int | None = None
    """Query heads whose logits were over the threshold in the last step; with MuonClip."""
    skipped_steps: int = 0
    """Steps left out because loss or gradient was not finite."""
    loss_spikes: int = 0
    """Losses far above those before them, since the run began."""
    last_loss_spike: int | None = None
    """The step with the last of them: so many were completed with it."""
    loss_curve: tuple[LossPoint, ...] = ()
    """With health.plateau: this phase's loss over its window, oldest first, in stretches of one length."""
    micro_batch_size: int = 0
    accumulation: int = 0
    micro_batches: dict[str, int] = {}
    """By phase whose micro batch is Auto, the one that this process found to fit, or 1."""
    world_size: int = 1
    teacher: TeacherState = TeacherState.ABSENT
    checkpoint: Checkpoint | None = None
    """The newest committed checkpoint."""
    checkpoint_at: float | None = None
    """When this process committed it, in seconds since 1970; none where it only went on from it."""
    checkpoint_seconds: float | None = None
    """What that took, from the copy of the state to the commit."""
    checkpoint_error: str | None = None
    """Why the last checkpoint could not be written, where training goes on without it; none after one that
    could."""
    checkpoint_failures: int = 0
    """Checkpoints that could not be written since this process began."""
    machine: MachineProgress = MachineProgress()
    warnings: tuple[str, ...] = ()
    """What a person should know of, and training goes on with: a sentence each, with the mend."""


class Evaluation(Report):
    """How good the model is on the held-out text: a language model's perplexity, or a classifier's accuracy.

    Each is a decimal string (API conventions forbid floats), and the others are left out.
    """

    tokens: int | None = None
    """Tokens that perplexity was measured on."""
    examples: int | None = None
    """Labelled sequences that accuracy was measured on."""
    perplexity_original: str | None = None
    """Of the model before training, not quantised."""
    perplexity_before: str | None = None
    """Of the model before training, fully quantised."""
    perplexity_after: str | None = None
    """Of the trained model, fully quantised."""
    perplexity_teacher: str | None = None
    """Of the teacher."""
    accuracy_original: str | None = None
    """Share of right labels, from 0 to 1, of the model before training, not quantised."""
    accuracy_before: str | None = None
    """Of the model before training, fully quantised."""
    accuracy_after: str | None = None
    """Of the trained model, fully quantised."""


def _encodable(message: Any) -> Any:
    """An error about a file whose name is not UTF-8 holds lone surrogates, which JSON cannot carry."""
    return message.encode(errors="replace").decode() if isinstance(message, str) else message


class Fault(Report):
    """Steps in a row whose loss or gradient was not finite."""

    first_step: int
    """The first of them, from 0: so many steps had been completed before it."""
    steps: int


class TerminationReport(Report):
    """A pod's last word, as JSON in its termination message."""

    exit_code: int
    reason: str
    """The exit code's name."""
    message: Annotated[str, BeforeValidator(_encodable)] = ""
    rank: int | None = None
    """The rank that it is about, where it is about one."""
    step: int = 0
    """Optimiser steps completed."""
    checkpoint: Checkpoint | None = None
    """The newest committed checkpoint."""
    checkpoints: tuple[int, ...] = ()
    """Steps completed in each committed checkpoint, newest first."""
    fault: Fault | None = None
    """With NonFinite: what was not."""
    micro_batches: dict[str, int] = {}
    """By phase whose micro batch is Auto, the one that was found to fit, or 1."""
    transient: bool = False
    """Whether what was missing may be there another time, as where a server did not answer."""
    evaluation: Evaluation | None = None
    artifacts: dict[str, str] = {}
    """Where what came out is, by kind: a format of the export, LossPlot, or the tuned Teacher."""

    def to_message(self) -> str:
        """The report as JSON that Kubernetes keeps whole.

        A message that would not fit loses its middle: a sentence begins with what was wrong, and a traceback
        ends with it.
        """
        report, kept = self, len(self.message)
        while len(encoded := report.model_dump_json(by_alias=True).encode()) > TERMINATION_MESSAGE_LIMIT:
            if not kept:
                return report.model_copy(update={"artifacts": {}, "evaluation": None}).model_dump_json(
                    by_alias=True
                )
            kept = kept * 9 // 10
            begin, end = self.message[: kept // 3], self.message[len(self.message) - (kept - kept // 3) :]
            report = report.model_copy(update={"message": f"{begin}…{end}" if kept else ""})
        return encoded.decode()


class Told(Report):
    """What the operator tells pods that train already; what is left out stays as the order has it."""

    stop: bool = False
    """Whether they are to write a checkpoint and end."""
    every_steps: PositiveInt | None = None
    """checkpoint.everySteps."""
    keep: PositiveInt | None = None
    """checkpoint.keep."""
    required: bool | None = None
    """checkpoint.required."""
    skip_steps: PositiveInt | None = None
    """health.nonFinite.skipSteps."""


Purpose = Literal["Train", "TuneTeacher"]


class Order(Record):
    """What the operator hands a trainer: the whole run, and which job of it this is."""

    namespace: str
    name: str
    job: str
    """Name of the child job; it names this attempt in logs."""
    spec: BitNetRunSpec
    plan: Plan
    first_step: int = 0
    """The step that its pods are made for, and begin at unless an older checkpoint is all that is there."""
    scratch: str = SCRATCH
    """A folder on each machine that trains, for a run whose checkpoints are in a bucket."""
    purpose: Purpose = "Train"
    """TuneTeacher: this job tunes the run's teacher (`carried_out` says as what), and no step of the run is
    trained."""

    @model_validator(mode="after")
    def _there_is_a_teacher_to_tune(self) -> "Order":
        if self.purpose == "TuneTeacher" and self.plan.tuning is None:
            raise WrongValueError(
                "the run's teacher is to be tuned, and its ledger has no tuning",
                "Plan a run with spec.teacher.tune, or order it to train",
                field="purpose",
            )
        return self

    @property
    def shape(self) -> Shape:
        """How the job's pods begin to spread a step: so many there are."""
        if self.purpose == "TuneTeacher" and self.plan.tuning is not None:
            return self.plan.tuning.shape
        return self.plan.phase_at(self.first_step).shape

    @property
    def training_hash(self) -> str:
        """Names in checkpoints what is trained: the ledger, and what else in the spec decides a step.

        A checkpoint is gone on from only under the hash that it was written under. Shapes, parallelism, what
        checkpoints hold and when, the teacher's cache, retries and the pods' template are not in it; the text
        has a fingerprint of its own.
        """
        decisive = self.spec.model_dump_json(
            include={
                "model": True,
                "quantization": True,
                "classification": True,
                "data": {"mixture"},
                "optimizer": True,
                "averaging": True,
                "phases": True,
                "teacher": {"from_", "revision", "precision"},
                "seed": True,
            },
            exclude={"phases": {"__all__": {"workers"}}},
        )
        return hashlib.sha256(f"{self.plan.ledger_hash} {decisive}".encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """The run's own folder, as the process that trains sees it: run.json, metrics, plots, exports, and
        the checkpoints where those are in no bucket."""
        return run_folder(self.spec, self.namespace, self.name, self.scratch)

    @property
    def address(self) -> str:
        """Where a person finds what the run keeps."""
        return run_address(self.spec, self.namespace, self.name)


def run_address(spec: BitNetRunSpec, namespace: str, name: str) -> str:
    """Where a person finds what a run keeps: `<checkpoint.uri>/<namespace>/<name>`."""
    return f"{spec.checkpoint.uri.rstrip('/')}/{namespace}/{name}"


def tuned_teacher_address(order: Order) -> str:
    """Where the tuned teacher of a run is, as a model is named; one that has no marker is not whole."""
    return f"{order.address}/teacher"


def run_folder(spec: BitNetRunSpec, namespace: str, name: str, scratch: str) -> Path:
    """Where everything that a run writes lies: `<checkpoint.uri>/<namespace>/<name>`.

    With checkpoints in a bucket, a folder in `scratch` of this machine that stands for that.
    """
    location = parse_location(spec.checkpoint.uri)
    root = Path(scratch) / location.rest if location.bucket is not None else location.path
    return root / namespace / name
