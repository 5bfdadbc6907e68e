"""What the panels ask Prometheus, where more than one panel asks it."""

FLEET = 'namespace=~"$namespace"'
RUN = 'namespace="$namespace", name="$name"'

_UNWELL = {
    4: 'type="Stalled", status="True"',
    3: 'type="Checkpointing", status="False"',
    2: 'type="LossPlateau", status="True"',
    1: 'type="LossSpike", status="True"',
}
HEALTH = {
    0: ("well", "green"),
    1: ("loss spike", "yellow"),
    2: ("loss plateau", "orange"),
    3: ("checkpoints fail", "red"),
    4: ("stalled", "red"),
}
"""Words and colour of a run's health, by the value of `health`."""
LIFE = {"Pending": "yellow", "Running": "green", "Suspended": "purple", "Succeeded": "blue", "Failed": "red"}
"""Colours of the phases of a run's life."""


def by_run(series: str, matchers: str, *labels: str) -> str:
    """One value for each run (and each of `labels`): each replica of the operator exposes every run, and for
    a moment two pods of a run may be seen."""
    return f"max by ({', '.join(('namespace', 'name', *labels))}) ({series}{{{matchers}}})"


def one(series: str, *labels: str) -> str:
    """The value of the run that the dashboard shows, or one for each of `labels`."""
    grouping = f" by ({', '.join(labels)})" if labels else ""
    return f"max{grouping} ({series}{{{RUN}}})"


def in_phase(matchers: str, phase: str) -> str:
    """1 for each run in that phase of its life, nothing for others."""
    return by_run("bitnetrun_phase", f'{matchers}, phase="{phase}"') + " == 1"


def health(matchers: str) -> str:
    """The worst of what is not well with each run, and 0 with nothing."""
    worst_first = [
        f"{value} * {by_run('bitnetrun_condition', f'{matchers}, {condition}')}"
        for value, condition in _UNWELL.items()
    ]
    return " or ".join([*worst_first, f"0 * {by_run('bitnetrun_attempts', matchers)}"])


def seconds_left(matchers: str) -> str:
    """Seconds to the last step at the speed of now. Nothing while a run does not train."""
    step, steps, tokens, speed = (
        by_run(f"bitnetrun_{name}", matchers) for name in ("step", "steps", "tokens", "tokens_per_second")
    )
    return f"({steps} - {step}) * {tokens} / ({step} > 0) / ({speed} > 0)"


def checkpoints_behind(matchers: str) -> str:
    """Steps since the newest checkpoint, over the steps between two."""
    step = by_run("bitnetrun_step", matchers)
    newest = by_run("bitnetrun_checkpoint_step", matchers)
    every = by_run("bitnetrun_checkpoint_every_steps", matchers)
    return f"({step} - ({newest} or 0 * {step})) / {every}"


def quantile(share: float, histogram: str) -> str:
    """A quantile of an operator's histogram, over all replicas: those that stand by observe nothing."""
    return f"histogram_quantile({share}, sum by (le) (rate({histogram}_bucket[$__rate_interval])))"
