"""Weights & Biases: a run's steps as a run there. A fault of it is a warning, and never ends training."""

import logging
import netrc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bitnet_crds.locations import parse_location
from bitnet_crds.protocol import Evaluation, Order
from bitnet_trainer.record import versions
from bitnet_trainer.report import Reporter, StepRecord, read_metrics

_log = logging.getLogger(__name__)

_INIT_SECONDS, _FINISH_SECONDS = 60, 10
"""How long W&B may keep a run from beginning, and from ending: who is asked to stop has STOP_SECONDS."""


class Tracker:
    """What is told of one run while it trains. wandb's own process does the uploading."""

    def __init__(self, run: Any, first_step: int, warn: Callable[[str], None]) -> None:
        """`run` is a wandb.Run; steps before `first_step` were logged by an earlier process."""
        self._run, self._first_step, self._warn = run, first_step, warn

    def log(self, record: StepRecord) -> None:
        """Hands one step over, unless W&B has it already. Nothing waits for the network."""
        if record.step >= self._first_step:
            self._try(lambda run: run.log(flat(record), step=record.step))

    def summarize(self, evaluation: Evaluation) -> None:
        """How good the model is when training has ended."""
        measured = evaluation.model_dump(exclude_none=True)
        self._try(
            lambda run: run.summary.update(
                {f"evaluation/{name}": float(value) for name, value in measured.items()}
            )
        )

    def finish(self, exit_code: int) -> None:
        """Waits a while until all is uploaded; what is not by then stays on disk."""
        self._try(lambda run: run.finish(exit_code=exit_code))

    def _try(self, act: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            act(self._run)
        except Exception as error:  # noqa: BLE001  # whatever goes wrong in there, training goes on
            self._run = None
            self._warn(f"W&B failed, and nothing more is logged there: {_words(error)}")


@contextmanager
def tracked(order: Order, reporter: Reporter) -> Iterator[Tracker | None]:
    """Begins or continues the W&B run of an order that asks for one, and ends it with what ends this block.

    One rank calls it, before metrics.jsonl is written on. Whatever fails is a warning, in log and progress.
    """

    def warn(sentence: str) -> None:
        reporter.warn(f"tracking.wandb: {sentence}")

    if order.spec.tracking is None:
        yield None
        return
    tracker = _begin(order, warn)
    try:
        yield tracker
    # Anything at all, Ctrl-C too: each ends the run, which then shows as failed; and it goes on upwards.
    except BaseException:
        tracker.finish(1)
        raise
    tracker.finish(0)


def _begin(order: Order, warn: Callable[[str], None]) -> Tracker:
    asked = os.environ.get("WANDB_MODE", "online")
    if asked == "online":
        if (run := _online(order, warn)) is not None:
            return Tracker(run, run.starting_step, warn)
        asked = "offline"
    try:
        run = _init(order, asked)
    except Exception as error:  # noqa: BLE001  # a disk, or wandb itself, that is not what it should be
        warn(f"nothing is logged to W&B: {_words(error)}")
        run = None
    # Offline nobody tells what W&B has; metrics.jsonl has each step that was handed over.
    logged = max((record.step for record in read_metrics(order.folder / "metrics.jsonl")), default=0)
    return Tracker(run, logged + 1, warn)


def _online(order: Order, warn: Callable[[str], None]) -> Any | None:
    """The run at W&B; None, with a warning, where there is no key for it or it cannot be had."""
    assert order.spec.tracking is not None
    kept = (
        f"Figures are kept in {order.folder}/wandb; `wandb sync {order.folder}/wandb/offline-run-*` uploads "
        "them. Training goes on."
    )
    if parse_location(order.spec.checkpoint.uri).bucket is not None:
        kept += " That folder is the pod's own, and no part of the bucket."
    if not _has_key():
        secret = order.spec.tracking.wandb.secret
        where = f"the key WANDB_API_KEY of the Secret {secret}" if secret else "WANDB_API_KEY"
        warn(f"there is no API key. Put one into {where}. {kept}")
        return None
    try:
        return _init(order, "online")
    except Exception as error:  # noqa: BLE001  # a network, a key or a server that is not what it should be
        warn(f"W&B could not be reached ({_words(error)}). {kept}")
    try:
        import wandb

        # Its process holds the run's id still.
        wandb.teardown()
    except Exception:  # noqa: BLE001  # it is being left anyway
        _log.debug("wandb did not end well", exc_info=True)
    return None


def _init(order: Order, mode: Any) -> Any:
    # Here and not above: runs that do not ask for it need not have it.
    import wandb

    assert order.spec.tracking is not None
    asked = order.spec.tracking.wandb
    order.folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=asked.project,
        entity=asked.entity,
        name=asked.name or order.name,
        # Neither half has a dot.
        id=f"{order.namespace}.{order.name}",
        resume="allow",
        mode=mode,
        dir=order.folder,
        config={
            "namespace": order.namespace,
            "name": order.name,
            "spec": order.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
            "plan": order.plan.model_dump(mode="json", by_alias=True),
            "versions": versions(),
        },
        allow_val_change=True,
        settings=wandb.Settings(
            console="off", silent=True, init_timeout=_INIT_SECONDS, finish_timeout=_FINISH_SECONDS
        ),
    )


def _has_key() -> bool:
    """Whether wandb would find a key; it would ask at a terminal for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        known = netrc.netrc(Path(os.environ.get("NETRC", "~/.netrc")).expanduser())
    except (OSError, netrc.NetrcParseError, RuntimeError):
        return False  # RuntimeError: a user without a home
    return known.authenticators(host) is not None


def flat(record: StepRecord) -> Mapping[str, float | str]:
    """A step's figures by the names that they have in W&B, those that are not known left out."""
    found: dict[str, float | str] = {}

    def walk(prefix: str, part: Mapping[str, Any]) -> None:
        for name, value in part.items():
            if isinstance(value, Mapping):
                walk(f"{prefix}{name}/", value)
            elif value is not None:
                found[f"{prefix}{name}"] = value

    walk("", record.model_dump(exclude={"step", "left_out"}))
    return found


def _words(error: Exception) -> str:
    said = str(error).strip().splitlines()
    return said[0] if said else type(error).__name__
