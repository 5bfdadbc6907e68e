"""election: from a lease as it was read and the own clock, what a candidate for leader does next. Pure.

Nobody compares times of day. A lease is another's until it has stayed as it is for its whole length by
the reader's own clock; its holder stops earlier, by its own, counted from before it sent the renewal. So
two never lead at once while no clock runs LEASE_SECONDS / HOLD_SECONDS = 1.5 times as fast as another. The
lengths are client-go's (k8s.io/client-go/tools/leaderelection).
"""

from dataclasses import dataclass, replace
from enum import Enum

LEASE_SECONDS = 15.0
"""How long a lease that is not renewed keeps others off."""
HOLD_SECONDS = 10.0
"""How long after its last renewal the holder still acts."""
RETRY_SECONDS = 2.0
"""Between two looks at the lease."""


@dataclass(frozen=True)
class Lease:
    """The lease as the API server holds it."""

    holder: str
    """Identity of the candidate that holds it; empty where it was given up."""
    version: str
    """The server's name for this content: every write changes it."""
    seconds: float = LEASE_SECONDS
    """Its length, as its holder wrote it."""


class Step(Enum):
    """What a candidate does about the lease that it has read. A write names the version that was read, so
    that the server refuses it where somebody else wrote meanwhile."""

    CREATE = "there is none: make it"
    TAKE = "write yourself in"
    RENEW = "write yourself in once more"
    WAIT = "another leads, or may still"
    LOST = "you led: stop"


@dataclass(frozen=True)
class Candidate:
    """One replica, as far as it knows. Times are seconds of its own clock, which never goes back."""

    identity: str
    """No other candidate has it, nor this one's process after a restart."""
    seen: str | None = None
    """Version of the lease last seen; empty where that one has gone; None while there never was one."""
    since: float = 0.0
    """When that was seen first."""
    until: float | None = None
    """The moment from which it leads no more, unless it renews; None where it does not lead."""

    def remaining(self, now: float) -> float:
        """Seconds for which it surely leads; 0 where it may not."""
        return 0.0 if self.until is None else max(0.0, self.until - now)

    def sees(self, lease: Lease | None, now: float) -> "Candidate":
        """What it knows after it has read the lease, or that there is none."""
        if lease is None and self.seen is None:
            return self
        version = "" if lease is None else lease.version
        if version == self.seen:
            return self
        return replace(self, seen=version, since=now)

    def step(self, lease: Lease | None, now: float) -> Step:
        """What to do about the lease that it `sees`."""
        if self.until is not None:
            held = lease is not None and lease.holder == self.identity and self.remaining(now) > 0
            return Step.RENEW if held else Step.LOST
        waited = now - self.since
        if lease is None:
            # Of a lease that somebody deleted, the holder may not know yet.
            return Step.CREATE if self.seen is None or waited > LEASE_SECONDS else Step.WAIT
        # Its own name is there where the answer to its write was lost.
        if lease.holder in ("", self.identity) or waited > lease.seconds:
            return Step.TAKE
        return Step.WAIT

    def wrote(self, sent: float) -> "Candidate":
        """What it knows once the server took its name, in a write that was sent at `sent`."""
        return replace(self, until=sent + HOLD_SECONDS)

    def stopped(self) -> "Candidate":
        """The same, leading no more."""
        return replace(self, until=None)
