"""What trains a run: its pods, the processes in them, and what a phase has other than the rest."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from bitnet_crds.errors import WrongValueError
from bitnet_crds.record import Record

if TYPE_CHECKING:
    from bitnet_crds.spec import BitNetRunSpec

WorkerCount = Annotated[int, Field(ge=1, le=4096)]
GpuCount = Annotated[int, Field(ge=0, le=64)]
LARGEST_MICRO_BATCH = 1_000_000
BackendName = Literal["PyTorchJob", "Job"]
_SIZE_FIX = f"Write a whole number from 1 to {LARGEST_MICRO_BATCH}, or Auto"


def _parse_size(value: Any) -> Any:
    """A whole number or `Auto`; a number in quotes is neither, as the API server has it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_MICRO_BATCH
    if whole or value == "Auto":
        return value
    raise WrongValueError(f"{value!r} is no number of sequences", _SIZE_FIX)


MicroBatchSize = Annotated[
    int | Literal["Auto"],
    BeforeValidator(_parse_size),
    # A rule in place of the pattern would cost the API server too much: CEL cannot know that words are short.
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "pattern": "^Auto$",
            "minimum": 1,
            "maximum": LARGEST_MICRO_BATCH,
        }
    ),
]
_TEMPLATE: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


class Workers(Record):
    """The pods that train, and the processes in them."""

    count: WorkerCount = 1
    """Pods."""
    gpus_per_worker: GpuCount = 1
    """GPUs a pod asks for, one process each. With 0 a pod runs one process, on the CPU."""
    micro_batch_size: MicroBatchSize
    """Sequences in one forward and backward pass of one process. Auto: as many as its GPU's memory holds, as
    found by trying when a phase begins, with the teacher in memory where the phase has one; globalBatchSize
    holds. With a GPU in each process."""
    parallelism: Literal["DDP", "FSDP"] = "DDP"
    """How processes share the model. DDP: each holds weights, gradients and moments whole, 16 bytes a
    parameter with AdamW, and exchanges gradients once a step. FSDP: each holds its part of them, 16/N bytes
    with N processes, gathers a layer for each forward and backward pass (between machines only the codes of
    matrices that are wholly quantised by AbsMean, once a step), and exchanges gradients after each; embedding
    and head are whole from the one to the other, and a teacher always. A run may go on under the other. One
    process holds all of it either way."""
    backend: BackendName = "PyTorchJob"
    """The kind of child that makes the pods. PyTorchJob: Kubeflow's, whose training operator has to be in the
    cluster. Job: an Indexed Job of Kubernetes' own. `bitnetctl run` makes processes of this machine whatever
    is written here."""
    template: dict[str, Any] | None = Field(default=None, json_schema_extra=_TEMPLATE)
    """A pod template merged over the operator's: image, resources, node selector, volumes. The container
    that trains is named `pytorch`."""

    @property
    def processes_per_worker(self) -> int:
        """Ranks in one pod."""
        return processes_of(self.gpus_per_worker)


class PhaseWorkers(Record):
    """What a phase has other than spec.workers says; a field that is left out is as there.

    Pods begin anew where it changes them: the phase before ends with a checkpoint, and the next goes on from
    it in its own pods, with the same global batch.
    """

    count: WorkerCount | None = None
    """Pods."""
    gpus_per_worker: GpuCount | None = None
    """GPUs a pod asks for, one process each. With 0 a pod runs one process, on the CPU."""
    micro_batch_size: MicroBatchSize | None = None
    """Sequences in one forward and backward pass of one process, with the teacher in memory or not: its
    batchSizeFactor does not change it. Auto: as many as its GPU's memory holds."""
    template: dict[str, Any] | None = Field(default=None, json_schema_extra=_TEMPLATE)
    """A pod template merged over that of spec.workers."""

    @model_validator(mode="after")
    def _changes_something(self) -> "PhaseWorkers":
        if not self.model_dump(exclude_none=True):
            raise WrongValueError(
                "it changes nothing", "Name count, gpusPerWorker, microBatchSize or template"
            )
        return self


def processes_of(gpus_per_worker: int) -> int:
    """Ranks in a pod with so many GPUs: one each, and one on the CPU where there is none."""
    return max(1, gpus_per_worker)


class Pods(NamedTuple):
    """What the pods of a phase are; those of two phases that agree in it can be the same."""

    workers: int
    gpus_per_worker: int
    templates: tuple[dict[str, Any], ...]
    """Each merged over the one before, and the first over the operator's own."""


def pods_of(spec: "BitNetRunSpec", index: int) -> Pods:
    """The pods that phase `index` (from 0) trains in."""
    workers, own = spec.workers, spec.phases[index].workers
    templates = filter(None, (workers.template, own.template if own else None))
    if own is None:
        return Pods(workers.count, workers.gpus_per_worker, tuple(templates))
    gpus = workers.gpus_per_worker if own.gpus_per_worker is None else own.gpus_per_worker
    return Pods(own.count or workers.count, gpus, tuple(templates))


def micro_batch_of(spec: "BitNetRunSpec", index: int) -> int | Literal["Auto"]:
    """The micro batch size that is written for phase `index` (from 0): its own, or the run's."""
    own = spec.phases[index].workers
    return (own.micro_batch_size if own else None) or spec.workers.micro_batch_size
