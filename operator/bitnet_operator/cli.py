"""bitnetctl: plan · run · status · export · eval. A person's mistake is a paragraph and exit code 2."""

import asyncio
import shlex
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args

import aiohttp
import typer
from rich.console import Console

from bitnet_crds import BitNetRun, BitNetRunStatus, ExitCode, InvalidRun, Plan, parse_run
from bitnet_crds.advice import advise
from bitnet_crds.protocol import run_address
from bitnet_crds.spec import ExportFormat
from bitnet_crds.status import RunPhase
from bitnet_operator.admission import accepted
from bitnet_operator.api import RUNS, ApiError, connect
from bitnet_operator.backends.local import (
    STATUS_FILE,
    LocalMachine,
    RunInUseError,
    check_unchanged,
    only_driver,
    read_status,
)
from bitnet_operator.case import Settings
from bitnet_operator.documents import check_local_files, read_document
from bitnet_operator.failing import reopened
from bitnet_operator.live import LiveView
from bitnet_operator.local_folder import kept_at, local_folder
from bitnet_operator.moments import parse_timestamp
from bitnet_operator.observation import Key
from bitnet_operator.outcome import render_outcome
from bitnet_operator.plan_table import render_plan, render_step
from bitnet_operator.reconcile import reconcile
from bitnet_operator.trainer_process import run_trainer, trainer_is_installed

EXIT_USER_MISTAKE = 2
EXIT_FAILED = 1
_MISTAKES = (
    ExitCode.BAD_INPUT,
    ExitCode.MODEL_UNAVAILABLE,
    ExitCode.TEACHER_UNAVAILABLE,
    ExitCode.DATA_UNAVAILABLE,
    ExitCode.CHECKPOINT_UNAVAILABLE,
)
"""What the trainer ends with where a person has to mend something."""
EXIT_INTERRUPTED = 130
"""As a shell reports a program that Ctrl-C ended."""

_LOCAL = Settings(progress_interval=1.0, first_retry_delay=2.0)

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
# Piped output is wrapped by whoever reads it, and must not cut paths.
# Brackets and colons of a path are no markup.
out = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False)

RunFile = Annotated[Path, typer.Argument(metavar="RUN.YAML", help="A BitNetRun.", show_default=False)]


@app.callback()
def _bitnetctl() -> None:
    """Plans, trains and watches 1.58-bit models."""


@app.command("plan")
def plan_command(
    file: RunFile,
    step: Annotated[
        int | None, typer.Option("--step", help="Print what holds in this step, from 0.", show_default=False)
    ] = None,
) -> None:
    """Prints the ledger: steps, phases, shapes, learning rate, teacher. Nothing is trained."""
    _, run, ledger = _read(file)
    if step is not None:
        out.print(_or_exit(lambda: render_step(run, ledger, step)))
        return
    out.print(render_plan(run, ledger, advise(run.spec, ledger)))


@app.command("run")
def run_command(file: RunFile) -> None:
    """Trains on this machine. Ctrl-C checkpoints and stops; the same command again goes on from there."""
    document, run, _ = _read(file)
    _check_trainer()
    _or_exit(lambda: check_local_files(run.spec, run.metadata.namespace, run.metadata.name))
    folder = local_folder(run.spec, run.metadata.namespace, run.metadata.name)
    _or_exit(lambda: check_unchanged(run))
    begun = datetime.now(UTC)
    try:
        with only_driver(folder):
            machine = asyncio.run(_drive(document, run))
    except RunInUseError as error:
        _exit_with(str(error))
    out.print(render_outcome(run, machine.status, _kept_at(run, machine.status)))
    if _ended_before(machine.status, begun):
        beside = (
            f" and {run_address(run.spec, run.metadata.namespace, run.metadata.name)}"
            if run.spec.checkpoint.uri.startswith("gs://")
            else ""
        )
        out.print(f"It had ended before. To train it anew, give it another name or remove {folder}{beside}.")
    raise typer.Exit(_exit_status(machine.status))


@app.command("status")
def status_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run.yaml of this machine, or a run's name.")],
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Of a run in the cluster.")] = "default",
) -> None:
    """Prints how a run stands: one of this machine, by its file, or one in the cluster, by its name."""
    if _names_file(run):
        _, parsed, _ = _read(Path(run))
        folder = local_folder(parsed.spec, parsed.metadata.namespace, parsed.metadata.name)
        known = _or_exit(lambda: read_status(folder))
        if known is None:
            _exit_with(
                f"{run} was never run here: there is no {folder / STATUS_FILE}. "
                f"Start it with `bitnetctl run {shlex.quote(run)}`."
            )
        status, kept = known, _kept_at(parsed, known)
    else:
        document = asyncio.run(_from_cluster(Key(namespace, run)))
        parsed = _or_exit(lambda: parse_run(document))
        status, kept = BitNetRunStatus.model_validate(document.get("status") or {}), None
    out.print(render_outcome(parsed, status, kept))


@app.command("export")
def export_command(
    source: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, or the folder of one of its checkpoints.")
    ],
    formats: Annotated[
        list[str],
        typer.Option("--format", help=f"May be given again: {', '.join(get_args(ExportFormat))}."),
    ],
    to: Annotated[Path | None, typer.Option("--to", help="Instead of export/ in the run's folder.")] = None,
) -> None:
    """Exports what a run has trained, from its newest checkpoint, fully quantised whatever the step."""
    _check_trainer()
    known = get_args(ExportFormat)
    if strange := [name for name in formats if name not in known]:
        _exit_with(f"{strange[0]} is no format of an export. Choose among {', '.join(known)}.")
    arguments = [str(source), *(f"--format={name}" for name in formats), *([f"--to={to}"] if to else [])]
    raise typer.Exit(_as_exit_status(run_trainer("export", arguments)))


@app.command("eval")
def eval_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run, a checkpoint, an exported folder or file, or hf://organisation/name.",
        ),
    ],
    text: Annotated[Path, typer.Option("--text", help="The text to predict, in UTF-8.")],
    against: Annotated[
        str | None, typer.Option("--against", metavar="TEACHER", help="A second model, on the same text.")
    ] = None,
    sequence_length: Annotated[
        int | None, typer.Option("--sequence-length", help="Tokens read at once; 1024 or the model's most.")
    ] = None,
) -> None:
    """Prints a model's perplexity on a text, how many tokens it reads a second, and its bytes in memory."""
    _check_trainer()
    arguments = [model, f"--text={text}"]
    arguments += [] if against is None else [f"--against={against}"]
    arguments += [] if sequence_length is None else [f"--sequence-length={sequence_length}"]
    raise typer.Exit(_as_exit_status(run_trainer("compare", arguments)))


def _names_file(words: str) -> bool:
    """Whether a file of this machine is meant, be it a pipe. Exits where it is not there."""
    try:
        there = Path(words).exists()
    except OSError:
        # A name too long, or a folder that cannot be read: no file.
        there = False
    if "/" not in words and not words.endswith((".yaml", ".yml")):
        return there and Path(words).is_file()
    if not there:
        _exit_with(f"there is no {words}. Name a file that can be read, or a run in the cluster.")
    return True


async def _from_cluster(key: Key) -> dict[str, Any]:
    try:
        async with connect() as api:
            return await api.get(RUNS.path(*key))
    except ApiError as error:
        _exit_with(f"{key}: {error}")


async def _drive(document: dict[str, Any], run: BitNetRun) -> LocalMachine:
    """The control loop of the cluster, on this machine, until the run has ended or was stopped."""
    key = Key(run.metadata.namespace, run.metadata.name)
    async with aiohttp.ClientSession() as http:
        with LiveView(run, out) as view:
            machine = LocalMachine(document, http, since=datetime.now(UTC))
            # Whoever runs a failed run again has mended what was wrong.
            machine.status = reopened(machine.status)
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGINT, _interrupt, machine)
            loop.add_signal_handler(signal.SIGTERM, _interrupt, machine)
            while True:
                wait = await reconcile(machine, key, datetime.now(UTC), _LOCAL)
                view.update(machine.status, machine.progress)
                if wait is None:
                    return machine
                await machine.wait(min(wait, _LOCAL.progress_interval))


def _interrupt(machine: LocalMachine) -> None:
    if machine.stop_requested:
        out.print("killed; the last committed checkpoint stays")
        machine.kill()
    else:
        out.print("stopping: the step is finished and a checkpoint written. Ctrl-C again kills at once")
        machine.stop_requested = True


def _kept_at(run: BitNetRun, status: BitNetRunStatus) -> str:
    metadata = run.metadata
    return kept_at(run.spec, metadata.namespace, metadata.name, status.checkpoint_step or 0)


def _ended_before(status: BitNetRunStatus, moment: datetime) -> bool:
    ended = status.segments[-1].ended_at if status.segments else None
    return status.phase is RunPhase.SUCCEEDED and ended is not None and parse_timestamp(ended) < moment


def _exit_status(status: BitNetRunStatus) -> int:
    if status.phase is RunPhase.SUCCEEDED:
        return 0
    if status.phase is RunPhase.SUSPENDED:
        return EXIT_INTERRUPTED
    return _as_exit_status(status.segments[-1].exit_code if status.segments else None)


def _as_exit_status(code: int | None) -> int:
    """bitnetctl's own exit code where the trainer ended with `code`."""
    return 0 if code == 0 else EXIT_USER_MISTAKE if code in _MISTAKES else EXIT_FAILED


def _check_trainer() -> None:
    if not trainer_is_installed():
        _exit_with("the trainer is not installed here. Install bitnet-operator[operator,trainer].")


def _read(file: Path) -> tuple[dict[str, Any], BitNetRun, Plan]:
    """The run as written, parsed, and planned. The file is read once: a pipe says nothing twice."""

    def read() -> tuple[dict[str, Any], BitNetRun, Plan]:
        document = read_document(file)
        return document, *accepted(document)

    return _or_exit(read)


def _or_exit(action: Callable[[], T]) -> T:
    try:
        return action()
    except InvalidRun as invalid:
        _exit_with(str(invalid))


def _exit_with(message: str) -> NoReturn:
    err.print(message, style="red", highlight=False, soft_wrap=True)
    raise typer.Exit(EXIT_USER_MISTAKE)


def main() -> None:
    """Entry point of `bitnetctl`."""
    app()


if __name__ == "__main__":
    main()
