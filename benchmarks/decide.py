"""What deciding costs: plan() and decide() on the full-run example, and 10,000 runs decided on."""

import copy
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import yaml

from bitnet_crds import BitNetRunStatus, Progress, parse_run, plan
from bitnet_operator.decide import Settings, decide
from bitnet_operator.observation import Job, JobState, Observation

EXAMPLE = Path(__file__).resolve().parent.parent / "examples/full-run.yaml"
RUNS = 10_000
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def median_ms(action: Callable[[], object], repeats: int = 300) -> float:
    """Median milliseconds of one call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        times.append((time.perf_counter() - begin) * 1000)
    return statistics.median(times)


def main() -> None:
    """Prints the table."""
    document = yaml.safe_load(EXAMPLE.read_text())
    run = parse_run(document)
    ledger = plan(run.spec)
    begun = decide(run, ledger, Observation(document, BitNetRunStatus()), NOW, Settings()).status
    phase = ledger.phase_at(9_000)
    progress = Progress(total_steps=ledger.total_steps, step=9_000, phase=phase.name, loss=2.5)
    job = Job(begun.segments[0].job, JobState.ACTIVE, progress=progress)
    training = Observation(document, begun, (job,))

    def whole_reconcile() -> object:
        """All of a reconcile that is not I/O: the document parsed and planned anew, then decided on."""
        parsed = parse_run(document)
        return decide(parsed, plan(parsed.spec), training, NOW, Settings())

    rows = {
        "plan()": median_ms(lambda: plan(run.spec)),
        "decide(), a run that trains": median_ms(lambda: decide(run, ledger, training, NOW, Settings())),
        "parse + plan + decide": median_ms(whole_reconcile),
    }
    observations = [copy.copy(training) for _ in range(RUNS)]
    begin = time.perf_counter()
    for observation in observations:
        decide(run, ledger, observation, NOW, Settings())
    took = time.perf_counter() - begin

    print(f"Python {platform.python_version()}, pydantic {version('pydantic')}, {platform.machine()}")
    for name, milliseconds in rows.items():
        print(f"{name:<32}{milliseconds:8.3f} ms (median of 300)")
    print(f"{f'{RUNS:,} runs decided on':<32}{took:8.2f} s")


if __name__ == "__main__":
    main()
