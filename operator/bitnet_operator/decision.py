"""Decision: all that `decide` may ask for, as frozen records."""

from dataclasses import dataclass
from typing import Literal

from bitnet_crds import BitNetRunStatus
from bitnet_crds.protocol import Told


class ChildRefusedError(Exception):
    """The API server finds the child that a decision asks for wrong; only a person can mend its template."""


class NamespaceEndingError(Exception):
    """The namespace is being deleted: nothing can be made in it any more."""


class ChildForbiddenError(Exception):
    """The API server will not have the child that a decision asks for now: a quota is used up, or a role does
    not allow it. It may another time."""


class KindMissingError(Exception):
    """The cluster does not know the kind of child that a decision asks for; someone has to install it."""


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event on the run, or a line on a terminal."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Tell:
    """What the first pod of a job is to be told; it tells the others."""

    job: str
    pod: str
    words: Told


@dataclass(frozen=True)
class Decision:
    """What is to be true next: children first, then the status, then events."""

    status: BitNetRunStatus
    """The whole status as it is to stand."""
    ensure: str | None = None
    """The child job that is to exist; nothing happens where it does."""
    tell: Tell | None = None
    """What a pod that trains is to be told."""
    delete: tuple[str, ...] = ()
    """Child jobs that are to be gone."""
    removal: bool | None = None
    """Of a deleted run: whether the job that removes what it keeps is to exist; None leaves that as it is."""
    held: bool | None = None
    """Whether the run, once deleted, is to stay until what it keeps is removed; None leaves that as it is."""
    events: tuple[Event, ...] = ()
    wake_after: float | None = None
    """Seconds until the run is to be looked at again, even when nothing happens."""
