"""Records series of real runs, for alerts' tests: `python tests/support/record_series.py [NAME ...]`.

Each run of `alert_runs` is trained by `bitnetctl run`, with the faults that make it sick, while the
operator's collector over its status and the trainer's /metrics are read twice a second. One second becomes a
minute of the series, and times of day with it, so that a run of two minutes stands for one of two hours: it
is as sick as the alerts' windows, minutes and hours, ask for. Series that no alert names are left out.
"""

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from alert_runs import RUNS, AlertRun, Running
from bitnet_crds import parse_run
from bitnet_crds.series import UNIX_TIME, series
from bitnet_operator.backends.local import read_status
from bitnet_operator.metrics import RunMetrics
from bitnet_operator.observation import Key
from tiny import write_inputs

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "chart" / "alerts"
RULES = ROOT / "charts" / "bitnet-operator" / "files" / "alerts.yaml"
FAULTS = ROOT / "tests" / "support" / "faults"

PERIOD = 0.5
"""Seconds between two looks."""
INTERVAL = 30
"""Seconds between two samples of the series."""
AFTERWARDS = 60
"""Samples after the run has ended."""

Sample = dict[str, float]
"""Values by series, with its labels."""


def record(run: AlertRun, folder: Path) -> list[Sample]:
    """Trains the run and reads its series until it has ended. Raises RuntimeError where it ends otherwise
    than it should."""
    write_inputs(folder)
    document = run.document(folder)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(document))
    parsed, metrics = parse_run(document), RunMetrics()
    spec = parsed.spec.model_dump(by_alias=True)
    registry = CollectorRegistry()
    registry.register(metrics)
    key = Key(parsed.metadata.namespace, parsed.metadata.name)
    running = Running(folder, folder / "runs" / key.namespace / key.name)
    samples: list[Sample] = []
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [Path(sys.prefix) / "bin" / "bitnetctl", "run", file], stdout=output, stderr=output, env=_env(run)
        )
        began, wall = time.monotonic(), time.time()
        for tick in itertools.count():
            time.sleep(max(0.0, began + tick * PERIOD - time.monotonic()))
            ended = process.poll() is not None
            if (status := read_status(running.run_folder)) is not None:
                metrics.saw(key, status, spec)
                running.status = status
                run.act(running)
            texts = [(generate_latest(registry).decode(), {})]
            if (said := _trainer(running)) is not None:
                texts.append((said, {**key._asdict(), "pod": running.job.path.name}))
            samples.append(_scaled({each: value for text in texts for each, value in _values(*text)}, wall))
            if ended:
                break
    if (process.returncode == 0) != run.succeeds:
        raise RuntimeError(f"{run.name} ended with {process.returncode}:\n{(folder / 'output').read_text()}")
    return samples


def _env(run: AlertRun) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(FAULTS), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **run.faults}


def _trainer(running: Running) -> str | None:
    """What rank 0 answers at /metrics; None where it does not in time, as a scrape would have it."""
    if not running.trains:
        return None
    try:
        url = f"http://127.0.0.1:{running.job.process()[1]}/metrics"
        with urllib.request.urlopen(url, timeout=PERIOD) as answer:
            return str(answer.read().decode())
    except (OSError, urllib.error.URLError, ValueError):
        return None


def _values(text: str, labels: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    """The samples of a scrape that alerts name, with what the scrape adds to their labels."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in named():
                pairs = sorted({**sample.labels, **labels}.items())
                inside = ",".join(f'{name}="{value}"' for name, value in pairs)
                yield f"{sample.name}{{{inside}}}", sample.value


@cache
def named() -> set[str]:
    """The series of runs that the alerts name."""
    return set(re.findall(r"\b(?:bitnetrun|bitnet_trainer)_\w+", RULES.read_text()))


def _scaled(sample: Sample, wall: float) -> Sample:
    """The sample with its times of day as the series' own clock has them, which begins at 0."""
    scale = INTERVAL / PERIOD
    return {
        each: (value - wall) * scale if series(each.partition("{")[0]).unit == UNIX_TIME else value
        for each, value in sample.items()
    }


def values(samples: Iterable[float | None]) -> str:
    """Samples in promtool's notation. Where a series ends a scrape marks it as stale."""
    tokens: list[str] = []
    before: float | None = None
    for value in samples:
        if value is not None:
            tokens.append(f"{value:.6g}")
        else:
            tokens.append("_" if before is None else "stale")
        before = value
    words = []
    for token, group in itertools.groupby(tokens):
        times = len(list(group))
        if times == 1:
            words.append(token)
        else:
            words.append(f"_x{times}" if token == "_" else f"{token}+0x{times - 1}")
    return " ".join(words)


def as_test(run: AlertRun, samples: list[Sample]) -> dict[str, Any]:
    """The file for promtool: which alerts fire at some time, and which still do half an hour after it."""
    # The run stays as it ended; its pods are gone.
    last = {each: value for each, value in samples[-1].items() if each.startswith("bitnetrun_")}
    samples = [*samples, *[last] * AFTERWARDS]
    names = sorted({each for sample in samples for each in sample})
    end = (len(samples) - 1) * INTERVAL
    recorded = [{"series": each, "values": values([s.get(each) for s in samples])} for each in names]
    return {
        "rule_files": [os.path.relpath(RULES, FOLDER)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "name": run.about,
                "interval": f"{INTERVAL}s",
                "input_series": [*recorded, *operator(len(samples))],
                "promql_expr_test": [
                    fired(f"count_over_time(ALERTS{{alertstate='firing'}}[{end}s])", end, run.alerts),
                    fired("ALERTS{alertstate='firing'}", end, run.stays),
                ],
            }
        ],
    }


def operator(length: int) -> list[dict[str, str]]:
    """Series of an operator that leads, which a run on this machine has none of: written by hand."""
    return [
        {"series": "bitnet_operator_leader", "values": f"1+0x{length - 1}"},
        {
            "series": "bitnet_operator_last_seen_timestamp_seconds",
            "values": f"0+{INTERVAL}x{length - 1}",
        },
    ]


def fired(expr: str, at: int, alerts: Iterable[str]) -> dict[str, Any]:
    """Expects exactly these alerts of an expression over ALERTS, at a time in seconds."""
    return {
        "expr": f"group by (alertname) ({expr})",
        "eval_time": f"{at}s",
        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(alerts)],
    }


def header(run: AlertRun) -> str:
    """The first lines of a file."""
    return (
        f"# Recorded: {run.about}\n"
        f"# Written by `python tests/support/record_series.py {run.name}`; a second of it is a minute here.\n"
        "# The series of bitnet_operator_* alone are written by hand, for no operator ran.\n"
    )


def main() -> None:
    """Records the runs that are named, or all."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names
    for run in RUNS:
        if names and run.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            samples = record(run, Path(folder))
        text = yaml.safe_dump(as_test(run, samples), sort_keys=False, width=108)
        (FOLDER / f"{run.name}.yaml").write_text(header(run) + text)
        print(f"{run.name}: {len(samples)} samples")


if __name__ == "__main__":
    main()
