"""Where checkpoints are kept in tests: a folder, or a bucket of a server on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from google.api_core.retry import Retry

from bitnet_trainer import cloud
from gcs_faults import Proxy, gcs_faults
from gcs_server import gcs_server
from places import BucketPlace, LocalPlace, Place


@pytest.fixture(scope="session")
def gcs() -> Iterator[str]:
    """The server, without faults; STORAGE_EMULATOR_HOST is set by whoever uses it."""
    with gcs_server() as url:
        yield url


@pytest.fixture
def proxy(gcs: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What a client speaks to in its place; what fails is tried again at once."""
    quickly = {"initial": 0.01, "maximum": 0.02, "timeout": 0.6}
    for name in ("RETRY", "UPLOAD_RETRY"):
        monkeypatch.setattr(cloud, name, Retry(predicate=cloud.RETRY._predicate, **quickly))
    with gcs_faults(gcs) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        yield proxy


@pytest.fixture
def bucket(proxy: Proxy, tmp_path: Path, request: pytest.FixtureRequest) -> BucketPlace:
    """A bucket of the test's own."""
    assert proxy
    name = "b" + "".join(letter if letter.isalnum() else "-" for letter in request.node.name.lower())
    return BucketPlace(f"{name[:50]}-{abs(hash(request.node.name)) % 10**6}-b", tmp_path / "scratch")


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
