"""Backend: what the operator asks of a kind of child, whichever it is."""

from collections.abc import Mapping
from typing import Any, Protocol

from bitnet_crds import BitNetRun, Order
from bitnet_operator.api import Resource
from bitnet_operator.observation import JobState, Pod

Manifest = dict[str, Any]


class Backend(Protocol):
    """A kind of job that trains one segment. Each backend is a module of this package."""

    @property
    def RESOURCE(self) -> Resource:  # noqa: N802 - a module's constant
        """The job's own kind."""
        ...

    @property
    def BESIDE(self) -> tuple[Resource, ...]:  # noqa: N802 - a module's constant
        """Kinds of which one object, named as the job, is made before it and goes with it."""
        ...

    @property
    def MISSING(self) -> str:  # noqa: N802 - a module's constant
        """What a cluster lacks that does not know the job's kind, and the mend."""
        ...

    def manifests(
        self, run: BitNetRun, order: Order, trainer_image: str
    ) -> tuple[tuple[Resource, Manifest], ...]:
        """All that is to be made for the order's job, in order, the job last."""
        ...

    def state(self, job: Mapping[str, Any]) -> tuple[JobState, str | None]:
        """Where a job stands, and what its controller says of it."""
        ...

    def lost_pods(self, job: Mapping[str, Any]) -> tuple[Pod, ...]:
        """Pods by which the job failed, as far as its own status tells of them: they may be gone."""
        ...

    def pod_rank(self, pod: Mapping[str, Any]) -> int:
        """The pod's index among the job's pods; 0 holds rank 0 of the training."""
        ...
