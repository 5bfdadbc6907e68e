"""Where models, text and checkpoints live: `file://`, `pvc://`, `hf://` and `gs://` addresses."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from bitnet_crds.errors import WrongValueError

PVC_MOUNT_ROOT = PurePosixPath("/mnt/pvc")
"""A claim named by `pvc://claim/path` is mounted at `/mnt/pvc/claim` in every pod of the run."""

_LONGEST = 1024
"""Characters in an address: few enough for the one in a termination report to leave room for the rest."""
_BUCKET_PART = "[a-z0-9]([-_a-z0-9]{0,61}[a-z0-9])?"
"""What stands between the dots of a bucket's name, which has 3 to 222 characters in all.

Source: cloud.google.com/storage/docs/buckets, "Bucket naming requirements".
"""
_SHAPES = {
    "file": (r"file://(/.*)", "file:///absolute/path"),
    "pvc": (r"pvc://([a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?)", "pvc://claim/path"),
    "hf": (r"hf://([A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)", "hf://organisation/name"),
    "gs": (rf"gs://({_BUCKET_PART}(\.{_BUCKET_PART})*/.+)", "gs://bucket/path"),
}


@dataclass(frozen=True)
class Location:
    """An address, taken apart."""

    scheme: str
    """`file`, `pvc`, `hf` or `gs`."""
    rest: str
    """What stands after `://`: an absolute path, `claim/path`, a hub repository, or `bucket/path`."""

    @property
    def claim(self) -> str | None:
        """The PersistentVolumeClaim to mount, where the scheme is `pvc`."""
        return self.rest.split("/", 1)[0] if self.scheme == "pvc" else None

    @property
    def bucket(self) -> str | None:
        """The Cloud Storage bucket, where the scheme is `gs`."""
        return self.rest.split("/", 1)[0] if self.scheme == "gs" else None

    @property
    def object(self) -> str | None:
        """The path in that bucket: an object's name, or what the names of a folder's objects begin with
        before a slash."""
        return self.rest.split("/", 1)[1].rstrip("/") if self.scheme == "gs" else None

    @property
    def path(self) -> Path:
        """The path inside the process that trains. Raises ValueError for what is fetched first: a hub
        repository, and what is in a bucket."""
        if self.scheme == "file":
            return Path(self.rest)
        if self.scheme == "pvc":
            return Path(str(PVC_MOUNT_ROOT)) / self.rest
        raise ValueError(f"{self.scheme}://{self.rest} has no path before it is fetched")


def parse_location(address: str, schemes: tuple[str, ...] = tuple(_SHAPES)) -> Location:
    """Takes an address apart.

    Raises ValueError where the scheme is not one of `schemes` or the rest does not have its form.
    """
    for scheme in schemes:
        match = re.fullmatch(_SHAPES[scheme][0], address)
        if match is not None and ".." not in PurePosixPath(match[1]).parts:
            location = Location(scheme, match[1])
            if location.bucket is not None and not 3 <= len(location.bucket) <= 222:
                raise WrongValueError(
                    f"{address!r} names a bucket of {len(location.bucket)} characters",
                    "Name one of 3 to 222, as all buckets have",
                )
            return location
    raise WrongValueError(f"{address!r} is not an address that this field takes", f"Write {_forms(schemes)}")


def _forms(schemes: tuple[str, ...]) -> str:
    return " or ".join(_SHAPES[scheme][1] for scheme in schemes)


def _address(*schemes: str) -> tuple[AfterValidator, WithJsonSchema]:
    def check(address: str) -> str:
        parse_location(address, schemes)
        if len(address) > _LONGEST:
            raise WrongValueError(f"{len(address)} characters found", f"Write at most {_LONGEST}")
        return address

    return AfterValidator(check), WithJsonSchema(
        {
            "type": "string",
            "maxLength": _LONGEST,
            "pattern": f"^({'|'.join(_SHAPES[scheme][0] for scheme in schemes)})$",
            "x-mend": f"not an address that this field takes: write {_forms(schemes)}",
        }
    )


ModelAddress = Annotated[str, *_address("hf", "file", "pvc", "gs")]
DataAddress = Annotated[str, *_address("file", "pvc", "gs", "hf")]
CheckpointAddress = Annotated[str, *_address("file", "pvc", "gs")]
