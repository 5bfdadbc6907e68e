"""Where checkpoints are kept in tests: a folder, or a bucket of a server on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from places import BucketPlace, LocalPlace, Place


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Either."""
    if request.param == "folder":
        return LocalPlace(tmp_path / "run" / "checkpoints")
    found: BucketPlace = request.getfixturevalue("bucket")
    return found


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()
