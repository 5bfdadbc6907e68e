"""decide: from a run, its ledger and what was observed, what is to happen next. Pure: no I/O, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from bitnet_crds import (
    BitNetRun,
    BitNetRunStatus,
    ExitCode,
    InvalidRun,
    Plan,
    Progress,
    Segment,
    SegmentReason,
    TerminationReport,
)
from bitnet_crds.protocol import TrainerState
from bitnet_crds.status import RunPhase, SegmentOutcome
from bitnet_operator.conditions import about_checkpoints, about_warnings, set_condition
from bitnet_operator.decision import Decision, Event
from bitnet_operator.moments import parse_timestamp, timestamp
from bitnet_operator.observation import Job, JobState, Observation
from bitnet_operator.policies import resize, retry
from bitnet_operator.policies.failure import Failure, first_cause


@dataclass(frozen=True)
class Settings:
    """What an administrator may tune."""

    progress_interval: float = 15.0
    """Seconds between two looks at a run that trains, and at least between two writes of its progress."""
    first_retry_delay: float = retry.FIRST_DELAY_SECONDS
    """Seconds before the first retry; each one doubles it."""


def decide(
    run: BitNetRun, plan: Plan, observation: Observation, now: datetime, settings: Settings
) -> Decision:
    """What is to happen next with a run whose spec is in order."""
    return _Decider(run, plan, observation, now, settings).decide()


def reject(observation: Observation, invalid: InvalidRun, now: datetime) -> Decision:
    """What is to happen with a run that cannot be carried out as written: it fails, and nothing is made.

    One that trains already, accepted by an operator of another version, is stopped: nothing may train under
    a run that is said to have failed.
    """
    decision = _fail(observation, "InvalidSpec", str(invalid), now, accepted=False)
    *before, last = observation.status.segments or (None,)
    if last is None or last.outcome is not SegmentOutcome.RUNNING or not decision.events:
        return decision
    ended = last.model_copy(
        update={"outcome": SegmentOutcome.FAILED, "message": str(invalid), "ended_at": timestamp(now)}
    )
    return replace(
        decision,
        delete=tuple(job.name for job in observation.jobs if job.state is JobState.ACTIVE),
        status=decision.status.model_copy(update={"segments": (*before, ended)}),
    )


def child_refused(observation: Observation, message: str, now: datetime) -> Decision:
    """What is to happen when the API server will not have the child that the run's template makes."""
    return _fail(observation, "ChildRefused", message, now, accepted=True)


def _fail(observation: Observation, reason: str, message: str, now: datetime, *, accepted: bool) -> Decision:
    status = observation.status
    if status.phase.ended:
        return Decision(status=status)
    generation, at = _generation(observation.document), timestamp(now)
    conditions = status.conditions
    if not accepted:
        conditions = set_condition(
            conditions, "Accepted", "False", reason, message, generation=generation, now=at
        )
    conditions = set_condition(conditions, "Running", "False", reason, message, generation=generation, now=at)
    conditions = set_condition(conditions, "Failed", "True", reason, message, generation=generation, now=at)
    return Decision(
        status=status.model_copy(
            update={
                "observed_generation": generation,
                "phase": RunPhase.FAILED,
                "retry_at": None,
                "conditions": conditions,
            }
        ),
        events=(Event("Warning", reason, message),),
    )


def reopened(status: BitNetRunStatus) -> BitNetRunStatus:
    """A failed run's status, ready for another try from its last checkpoint; any other's as it is.

    The history stays; the attempts are counted anew.
    """
    if status.phase is not RunPhase.FAILED:
        return status
    conditions = tuple(condition for condition in status.conditions if condition.type != "Failed")
    return status.model_copy(
        update={"phase": RunPhase.PENDING, "attempts": 0, "retry_at": None, "conditions": conditions}
    )


class _Decider:
    """One decision in the making. Each method returns a Decision or a status; nothing is kept in between."""

    def __init__(
        self, run: BitNetRun, plan: Plan, observation: Observation, now: datetime, settings: Settings
    ) -> None:
        self.run = run
        self.plan = plan
        self.observation = observation
        self.now = now
        self.at = timestamp(now)
        self.settings = settings
        self.current = observation.status.segments[-1] if observation.status.segments else None

    def decide(self) -> Decision:
        status = self._accepted(self.observation.status)
        if status.phase.ended:
            return Decision(status=status)
        if self.current is None:
            return self._first_segment(status)
        if self.current.outcome is not SegmentOutcome.RUNNING:
            return self._next_segment(status, self.current)
        job = self.observation.job(self.current.job)
        if job is None:
            return self._failed(
                status, self.current, Failure("JobDeleted", f"job {self.current.job} is gone")
            )
        match job.state:
            case JobState.ACTIVE | JobState.SUSPENDED:
                return self._training(status, self.current, job)
            case JobState.SUCCEEDED:
                return self._succeeded(status, self.current, job)
            case JobState.FAILED:
                return self._failed(self._reported(status, job), self.current, first_cause(job))

    # The life of a segment, in order.

    def _first_segment(self, status: BitNetRunStatus) -> Decision:
        if self.observation.stop_requested:
            return Decision(status=status.model_copy(update={"phase": RunPhase.SUSPENDED}))
        return self._begin(status, SegmentReason.START)

    def _next_segment(self, status: BitNetRunStatus, ended: Segment) -> Decision:
        """After a segment that ended short of the run's end: the next one, once its time has come."""
        if self.observation.stop_requested:
            return self._suspended(status)
        if status.retry_at is not None:
            wait = (parse_timestamp(status.retry_at) - self.now).total_seconds()
            if wait > 0:
                return Decision(status=status, wake_after=wait)
        reasons = {
            SegmentOutcome.SUSPENDED: SegmentReason.RESUMED,
            SegmentOutcome.PREEMPTED: SegmentReason.PREEMPTED,
        }
        return self._begin(status, reasons.get(ended.outcome, SegmentReason.RETRY))

    def _begin(self, status: BitNetRunStatus, reason: SegmentReason) -> Decision:
        first_step = status.checkpoint_step or 0
        # Jobs are counted in the status: when this decision is made again, because its status was never
        # written, it names the same child.
        job_number = len({segment.job for segment in status.segments})
        segment = Segment(
            index=len(status.segments),
            reason=reason,
            job=f"{self.run.metadata.name}-{job_number}",
            first_step=first_step,
            end_step=resize.stretch_end(self.plan, first_step),
            shape=self.plan.phase_at(first_step).shape,
            started_at=self.at,
        )
        status = status.model_copy(
            update={
                "phase": RunPhase.RUNNING,
                "step": first_step,
                "retry_at": None,
                "segment": _title(segment),
                "segments": (*status.segments, segment),
            }
        )
        message = f"segment {segment.index} ({reason}) waits for its pods, to go on at step {first_step}"
        return Decision(
            ensure=segment.job,
            delete=self._outlived(segment.job),
            status=self._running(status, "False", "WaitingForPods", message),
            events=(Event("Normal", reason, f"job {segment.job} begins at step {first_step}"),),
            wake_after=self.settings.progress_interval,
        )

    def _outlived(self, beginning: str) -> tuple[str, ...]:
        """Jobs that ended before the last one: the last one's pods stay, for whoever wants to read why."""
        kept = {beginning, self.current.job if self.current else beginning}
        return tuple(job.name for job in self.observation.jobs if job.name not in kept)

    def _training(self, status: BitNetRunStatus, current: Segment, job: Job) -> Decision:
        status, began = self._progressed(status, current, job.progress)
        current = status.segments[-1]
        if job.progress is not None:
            status = self._running(
                status,
                "True",
                _doing(job.progress.state),
                f"segment {_title(current)}, phase {job.progress.phase}",
            )
            for about in (about_checkpoints, about_warnings):
                if said := about(status.conditions, job.progress):
                    status = self._condition(status, *said)
        elif waiting := [f"{pod.name}: {pod.waiting}" for pod in job.pods if pod.waiting]:
            status = self._running(status, "False", "WaitingForPods", "; ".join(waiting))
        return Decision(
            stop=current.job if self.observation.stop_requested else None,
            status=status,
            events=tuple(
                Event(
                    "Normal", segment.reason, f"segment {_title(segment)} begins at step {segment.first_step}"
                )
                for segment in began
            ),
            wake_after=self.settings.progress_interval,
        )

    def _progressed(
        self, status: BitNetRunStatus, current: Segment, progress: Progress | None
    ) -> tuple[BitNetRunStatus, tuple[Segment, ...]]:
        """The status after what rank 0 said, and the segments that began in place meanwhile."""
        if progress is None:
            return status, ()
        # A trainer that is still loading does not know yet how far its checkpoint is.
        step = max(progress.step, current.first_step)
        advanced = resize.advance(self.plan, current, step, self.at)
        fresh = len(advanced) > 1 or status.progress_at is None
        if not fresh and status.progress_at is not None:
            age = (self.now - parse_timestamp(status.progress_at)).total_seconds()
            # Pods' events come in bursts; what they say of progress is not worth a write each.
            # A clock that went back says nothing of age.
            if 0 <= age < self.settings.progress_interval:
                return status, ()
        seen = {
            "progress_at": self.at,
            "training_phase": progress.phase,
            "step": step,
            "loss": None if progress.loss is None else f"{progress.loss:.4f}",
            "tokens": progress.tokens,
            "tokens_per_second": None
            if progress.tokens_per_second is None
            else round(progress.tokens_per_second),
            "skipped_steps": progress.skipped_steps,
            "checkpoint_step": progress.checkpoint.step if progress.checkpoint else status.checkpoint_step,
            "segments": (*status.segments[:-1], *advanced),
            "segment": _title(advanced[-1]),
        }
        changed = any(value != getattr(status, key) for key, value in seen.items() if key != "progress_at")
        return (status.model_copy(update=seen) if changed else status), advanced[1:]

    def _succeeded(self, status: BitNetRunStatus, current: Segment, job: Job) -> Decision:
        status = self._reported(status, job)
        segments = resize.advance(self.plan, current, self.plan.total_steps, self.at)
        last = segments[-1].model_copy(
            update={"outcome": SegmentOutcome.COMPLETED, "ended_at": self.at, "exit_code": 0}
        )
        message = f"{self.plan.total_steps} steps, {self.plan.tokens} tokens"
        status = status.model_copy(
            update={
                "phase": RunPhase.SUCCEEDED,
                "step": self.plan.total_steps,
                "tokens": self.plan.tokens,
                "training_phase": None,
                "tokens_per_second": None,
                "segment": _title(last),
                "segments": (*status.segments[:-1], *segments[:-1], last),
            }
        )
        status = self._running(status, "False", "Succeeded", message)
        return Decision(
            status=self._condition(status, "Succeeded", "True", "Completed", message),
            events=(Event("Normal", "Succeeded", message),),
        )

    def _failed(self, status: BitNetRunStatus, current: Segment, failure: Failure) -> Decision:
        if self.observation.stop_requested and (failure.preempted or failure.exit_code == ExitCode.KILLED):
            return self._suspended(self._ended(status, current, failure, SegmentOutcome.SUSPENDED))
        verdict = retry.after_failure(
            failure, status.attempts, self.run.spec.retries, self.settings.first_retry_delay
        )
        outcome = SegmentOutcome.PREEMPTED if failure.preempted else SegmentOutcome.FAILED
        status = self._ended(status, current, failure, outcome).model_copy(
            update={"attempts": verdict.attempts}
        )
        if isinstance(verdict, retry.GiveUp):
            observation = replace(self.observation, status=status)
            return _fail(observation, failure.reason, verdict.message, self.now, accepted=True)
        retry_at = self.now + timedelta(seconds=verdict.after_seconds)
        status = status.model_copy(update={"retry_at": timestamp(retry_at)})
        message = f"{failure.message}; goes on from step {status.checkpoint_step or 0}"
        return Decision(
            status=self._running(status, "False", failure.reason, message),
            events=(Event("Normal" if failure.preempted else "Warning", failure.reason, message),),
            wake_after=verdict.after_seconds,
        )

    def _ended(
        self, status: BitNetRunStatus, current: Segment, failure: Failure, outcome: SegmentOutcome
    ) -> BitNetRunStatus:
        """The status with its current segments closed. Boundaries passed since the last look are written
        down first: the report tells how far the pods really got."""
        segments = resize.advance(self.plan, current, status.step, self.at)
        last = segments[-1].model_copy(
            update={
                "outcome": outcome,
                "exit_code": failure.exit_code,
                "exit_reason": failure.reason,
                "message": failure.message,
                "ended_at": self.at,
            }
        )
        return status.model_copy(
            update={
                "segments": (*status.segments[:-1], *segments[:-1], last),
                "segment": _title(last),
                "tokens_per_second": None,
            }
        )

    def _suspended(self, status: BitNetRunStatus) -> Decision:
        message = f"stopped by request; goes on from step {status.checkpoint_step or 0}"
        status = status.model_copy(update={"phase": RunPhase.SUSPENDED, "retry_at": None})
        return Decision(status=self._running(status, "False", "Suspended", message))

    # Parts of a status.

    def _reported(self, status: BitNetRunStatus, job: Job) -> BitNetRunStatus:
        """The status with what the pods' last words add to it."""
        reports = [pod.report for pod in job.pods if pod.report is not None]
        if not reports:
            return status
        furthest: TerminationReport = max(reports, key=lambda report: report.step)
        checkpoints = [report.checkpoint.step for report in reports if report.checkpoint is not None]
        return status.model_copy(
            update={
                "step": max(furthest.step, status.step),
                "checkpoint_step": max(checkpoints, default=status.checkpoint_step),
                "evaluation": furthest.evaluation or status.evaluation,
                "artifacts": furthest.artifacts or status.artifacts,
            }
        )

    def _accepted(self, status: BitNetRunStatus) -> BitNetRunStatus:
        message = f"{self.plan.total_steps} steps of {self.plan.tokens_per_step} tokens"
        status = status.model_copy(
            update={
                "observed_generation": _generation(self.observation.document),
                "total_steps": self.plan.total_steps,
            }
        )
        return self._condition(status, "Accepted", "True", "Planned", message)

    def _running(self, status: BitNetRunStatus, value: Any, reason: str, message: str) -> BitNetRunStatus:
        return self._condition(status, "Running", value, reason, message)

    def _condition(
        self, status: BitNetRunStatus, type_: str, value: Any, reason: str, message: str
    ) -> BitNetRunStatus:
        conditions = set_condition(
            status.conditions,
            type_,
            value,
            reason,
            message,
            generation=_generation(self.observation.document),
            now=self.at,
        )
        return status.model_copy(update={"conditions": conditions})


def _generation(document: Mapping[str, Any]) -> int:
    return int(document.get("metadata", {}).get("generation", 1))


def _doing(state: TrainerState) -> str:
    """The trainer's state as a condition's reason. Checkpoints are frequent and short: training."""
    return (TrainerState.TRAINING if state is TrainerState.CHECKPOINTING else state).value


def _title(segment: Segment) -> str:
    return f"{segment.index} {segment.reason}"
