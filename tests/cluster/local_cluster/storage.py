"""fake-gcs-server as a host process, which speaks Google Cloud Storage to a test's pods and ends with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_cluster.build import build_all
from local_cluster.processes import Processes, answers
from local_cluster.programs import FAKE_GCS_SERVER
from local_cluster.settings import Network


@contextmanager
def cloud_storage(work: Path, network: Network) -> Iterator[str]:
    """Runs one inside, with nothing in it; gives what STORAGE_EMULATOR_HOST is to name, in pods and here.

    It is built where the cache lacks it. `work` gets its log.

    Raises:
        LocalClusterError: it could not be built.
        ComponentFailed: it did not become ready; the tail of its log is in the message.
    """
    build_all(programs=[FAKE_GCS_SERVER])
    address, port = network.node_address, network.storage_port
    processes = Processes(work)
    try:
        program = FAKE_GCS_SERVER.folder() / "fake-gcs-server"
        server = processes.start("fake-gcs-server", [program, f"{address}:{port}"])
        processes.wait_until(server, lambda: answers(address, port, "/_internal/healthcheck"))
        yield f"http://{address}:{port}"
    finally:
        processes.kill()
