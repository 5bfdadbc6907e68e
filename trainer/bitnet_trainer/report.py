"""What rank 0 tells the world: /progress, /metrics and /healthz over HTTP, and metrics.jsonl."""

import logging
import os
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import RLock, Thread

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import ValidationError

from bitnet_crds.protocol import PROGRESS_PORT, MachineProgress, ObjectiveProgress, Progress
from bitnet_crds.record import Report
from bitnet_trainer.errors import BadInput
from bitnet_trainer.series import ProgressCollector
from bitnet_trainer.skipped import SkippedStep

_log = logging.getLogger(__name__)


class StepRecord(Report):
    """One line of metrics.jsonl: one optimiser step."""

    step: int
    """Steps completed with this one: 1 for the first."""
    phase: str
    loss: float | None
    """Total loss; none where it was not finite and the step was left out."""
    loss_spike: float | None = None
    """Robust z-score of a loss that is a spike; nothing is done about it."""
    left_out: SkippedStep | None = None
    """What was not finite, and which sequences the step had, where it was left out."""
    objectives: dict[str, ObjectiveProgress] = {}
    gradient_norm: float | None
    """L2, before clipping; none where it was not finite."""
    largest_attention_logit: float | None = None
    """S_max of QK-clip over all heads, in the weights before the update; with MuonClip."""
    clipped_heads: int | None = None
    """Query heads over the threshold; with MuonClip."""
    learning_rate: float
    """AdamW's."""
    muon_learning_rate: float | None = None
    """Muon's, with MuonClip."""
    quantization_lambda: float
    tokens: int
    """Tokens trained on since the run began."""
    tokens_per_second: float | None
    """Over the last few steps; none in the first after a start or a checkpoint."""
    skipped_steps: int
    micro_batch_size: int
    accumulation: int
    world_size: int
    teacher: bool
    """Whether the teacher took part."""
    mixture: dict[str, float] = {}
    """Share of the sequences by source."""
    machine: MachineProgress = MachineProgress()
    """Time and memory."""


class MetricsLog:
    """metrics.jsonl: a line a step, each step once, however often the run was stopped and resumed."""

    def __init__(self, path: Path, completed: int) -> None:
        """Opens it to go on after step `completed`: what an earlier process wrote beyond that is dropped."""
        kept = [line for line in _lines(path) if 0 < _step(line) <= completed]
        pending = path.with_name(f".{path.name}")
        pending.write_text("".join(f"{line}\n" for line in kept))
        pending.replace(path)
        self._path, self._file, self._waiting = path, path.open("ab", buffering=0), b""

    def recorded(self) -> list[StepRecord]:
        """Every step that it holds, oldest first."""
        return read_metrics(self._path)

    def append(self, record: StepRecord) -> None:
        """Writes one step's line; what the disk does not take now is written with the next one.

        Whether a full disk ends the run is for its checkpoints to say.
        """
        wrote_all = not self._waiting
        self._waiting += f"{record.model_dump_json(by_alias=True)}\n".encode()
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if wrote_all:
                _log.warning("%s cannot be written now (%s)", self._file.name, error.strerror or error)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path) -> list[StepRecord]:
    """Every step in a metrics.jsonl, oldest first; a last line cut short by a kill is left out."""
    return [StepRecord.model_validate_json(line) for line in _lines(path) if _step(line) > 0]


class Reporter:
    """Holds the run's progress, and serves it where asked to."""

    def __init__(self, progress: Progress, phases: Sequence[str] = ()) -> None:
        """Begins with `progress`; `phases` are those of the whole run, by name."""
        self.progress = progress
        # Some changes come from other threads than the one that trains.
        self._lock = RLock()
        self._server: ThreadingHTTPServer | None = None
        self._registry = CollectorRegistry()
        self._registry.register(ProgressCollector(lambda: self.progress, phases))
        ProcessCollector(registry=self._registry)

    def update(self, **changes: object) -> None:
        """Changes fields of the progress; the whole is replaced at once, so that no reader sees a mixture."""
        with self._lock:
            self.progress = self.progress.model_copy(update=changes)

    def warn(self, sentence: str) -> None:
        """Adds what a person should know of to the progress' warnings."""
        _log.warning("%s", sentence)
        with self._lock:
            self.update(warnings=(*self.progress.warnings, sentence))

    def serve(self) -> None:
        """Answers at BITNET_HOST (default: every address), BITNET_PORT (default 9400) from a thread.

        Raises BadInput where the port is taken or is no port.
        """
        host, port = os.environ.get("BITNET_HOST", ""), os.environ.get("BITNET_PORT", str(PROGRESS_PORT))
        try:
            self._server = _Server((host, int(port)), _handler(self))
        except (OSError, ValueError, OverflowError) as error:
            raise BadInput(
                f"progress cannot be served at {host or '*'}:{port} ({error}). "
                "Set BITNET_PORT to a free port."
            ) from error
        Thread(target=self._server.serve_forever, name="progress", daemon=True).start()

    @property
    def port(self) -> int | None:
        """The port that is served, if any."""
        return self._server.server_address[1] if self._server else None

    def close(self) -> None:
        """Stops serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def metrics(self) -> bytes:
        """The progress in Prometheus' text format."""
        return generate_latest(self._registry)


class _Server(ThreadingHTTPServer):
    daemon_threads = True


def _handler(reporter: Reporter) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server calls
            match self.path.partition("?")[0]:
                case "/progress":
                    body = reporter.progress.model_dump_json(by_alias=True).encode()
                    self._answer(200, "application/json", body)
                case "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, reporter.metrics())
                case "/healthz":
                    self._answer(200, "text/plain", b"ok\n")
                case _:
                    self._answer(404, "text/plain", b"known here: /progress /metrics /healthz\n")

        def _answer(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing: a poll a second would drown the training log."""

    return Handler


def _lines(path: Path) -> list[str]:
    return path.read_text().split("\n") if path.exists() else []


def _step(line: str) -> int:
    """The step of a line, or 0 for one that is not whole. Step 0 is in no line."""
    try:
        return StepRecord.model_validate_json(line).step
    except ValidationError:
        return 0
