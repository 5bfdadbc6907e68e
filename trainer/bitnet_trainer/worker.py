"""One rank: `python -m bitnet_trainer.worker --order FILE`, started by the launcher."""

import argparse
import gc
import logging
import os
import sys
from pathlib import Path

from bitnet_crds.carried_out import carried_out
from bitnet_crds.protocol import (
    PHASE_BOUNDARY,
    ExitCode,
    Order,
    Progress,
    TerminationReport,
    exit_code_label,
)
from bitnet_trainer.outcome import failure_report, leave_report
from bitnet_trainer.report import Reporter
from bitnet_trainer.stop import StopRequest, end_with_launcher


def main() -> None:
    """Trains, leaves a report, and ends with the exit code that says how it went."""
    parser = argparse.ArgumentParser(prog="python -m bitnet_trainer.worker")
    parser.add_argument("--order", type=Path, required=True)
    arguments = parser.parse_args()
    rank = int(os.environ["RANK"])
    logging.basicConfig(
        format=f"%(asctime)s rank {rank} %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("bitnet_trainer").setLevel(logging.INFO if rank == 0 else logging.WARNING)
    stop = StopRequest()
    stop.listen()
    end_with_launcher()
    report = _report(arguments.order, rank, stop)
    leave_report(report)
    ended_well = report.exit_code in (ExitCode.SUCCEEDED, ExitCode.PREEMPTED)
    logging.getLogger("bitnet_trainer.worker").log(
        logging.INFO if ended_well else logging.ERROR, "%s: %s", report.reason, report.message
    )
    sys.stdout.flush()
    sys.stderr.flush()
    # Interpreter shutdown would wait for communicators whose other end may be gone.
    os._exit(report.exit_code)


def _report(path: Path, rank: int, stop: StopRequest) -> TerminationReport:
    order = Order.model_validate_json(path.read_text())
    run = carried_out(order)
    reporter = Reporter(
        Progress(total_steps=run.plan.end_step, phase=run.plan.phase_at(run.first_step).name),
        [phase.name for phase in run.plan.phases],
    )
    try:
        # Here and not above: importing torch takes seconds, and its failure is reported too. What it makes
        # stays to the end: looking for garbage among it would take a fifth of that time, and slow each
        # collection while training.
        gc.disable()
        from transformers.utils.logging import disable_progress_bar

        from bitnet_trainer.run import train

        gc.freeze()
        gc.enable()
        if rank == 0:
            reporter.serve()
        disable_progress_bar()  # type: ignore[no-untyped-call]
        result = train(order, reporter, stop)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # every end has a report
        return failure_report(error, rank, reporter.progress)
    code = ExitCode.PREEMPTED if result.stopped else ExitCode.SUCCEEDED
    return TerminationReport(
        exit_code=code,
        reason=PHASE_BOUNDARY if result.boundary else exit_code_label(code),
        message=result.message,
        rank=rank,
        step=reporter.progress.step,
        checkpoint=reporter.progress.checkpoint,
        micro_batches=reporter.progress.micro_batches,
        evaluation=result.evaluation,
        artifacts=dict(result.artifacts),
    )


if __name__ == "__main__":
    main()
