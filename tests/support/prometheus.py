"""A real Prometheus on this machine: what runs it, and what it is asked."""

import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from chart_tools import program
from ports import free_port


class Prometheus:
    """One that runs, by its API."""

    def __init__(self, address: str) -> None:
        self.address = address

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """`metric` and `value` of each series that an expression has, now or at a Unix time."""
        moment = {} if at is None else {"time": str(at)}
        return list(self._asked("query", query=expression, **moment)["result"])

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """`metric` and `values` of each series between two Unix times, every `step` seconds."""
        moments = {"start": str(start), "end": str(end), "step": str(step)}
        return list(self._asked("query_range", query=expression, **moments)["result"])

    def firing(self, alert: str = "") -> list[dict[str, str]]:
        """Labels of the alerts that fire, or of those of that name."""
        found = [each["labels"] for each in self._asked("alerts")["alerts"] if each["state"] == "firing"]
        return [labels for labels in found if alert in ("", labels["alertname"])]

    def targets(self) -> list[dict[str, Any]]:
        """`labels`, `health` and `lastError` of all that it scrapes."""
        return list(self._asked("targets", state="active")["activeTargets"])

    def _asked(self, what: str, **arguments: str) -> dict[str, Any]:
        url = f"{self.address}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)["data"]
        return found


@contextlib.contextmanager
def running(folder: Path, configuration: Mapping[str, Any], *options: str) -> Iterator[Prometheus]:
    """Runs one on `folder / "data"` until the block ends. Raises RuntimeError where it does not start."""
    written = folder / "prometheus.yml"
    written.write_text(yaml.safe_dump(dict(configuration)))
    address = f"127.0.0.1:{free_port()}"
    command = [
        program("prometheus"),
        f"--config.file={written}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        *options,
    ]
    with (
        (folder / "prometheus.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            _wait_until_ready(f"http://{address}", process, folder / "prometheus.log")
            yield Prometheus(f"http://{address}")
        finally:
            process.terminate()


def _wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError),
            urllib.request.urlopen(f"{address}/-/ready"),
        ):
            return
        time.sleep(0.1)
    raise RuntimeError(f"Prometheus does not answer:\n{log.read_text()[-2000:]}")
