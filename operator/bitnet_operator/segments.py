"""Segments: how the next one is made, what its pods are made from, and which child is none of them. Pure."""

import hashlib
import json
from datetime import datetime

from bitnet_crds import BitNetRun, BitNetRunSpec, BitNetRunStatus, Order, Plan, Segment, SegmentReason, Shape
from bitnet_crds.machines import Pods, micro_batch_of, pods_of
from bitnet_crds.protocol import Purpose, Told
from bitnet_crds.status import SegmentOutcome
from bitnet_operator.moments import timestamp
from bitnet_operator.observation import JobState, Observation
from bitnet_operator.policies.resize import stretch_end


def title(segment: Segment) -> str:
    """A segment in a word: `2 Retry`."""
    return f"{segment.index} {segment.reason}"


def open_segment(status: BitNetRunStatus) -> Segment | None:
    """The segment that trains, if one does."""
    last = status.segments[-1] if status.segments else None
    return last if last is not None and last.outcome is SegmentOutcome.RUNNING else None


def job_began(status: BitNetRunStatus) -> int:
    """The step at which the last segment's job began: other segments may have gone before it in place."""
    last = status.segments[-1]
    return next(segment.first_step for segment in status.segments if segment.job == last.job)


def begun(plan: Plan, status: BitNetRunStatus, step: int | None) -> Segment:
    """The last segment, as it is where its pods say that they began at step `step`: at a newer checkpoint
    than the operator had heard of, or an older one, being all that was there."""
    last = status.segments[-1]
    alone = all(segment.job != last.job for segment in status.segments[:-1])
    # While they load they count as where they were to begin.
    moved = last.last_step not in (None, last.first_step)
    if step is None or step == last.first_step or moved or not alone:
        return last
    if last.purpose == "Train" and plan.pods_end(step) != plan.pods_end(last.first_step):
        return last  # the pods are not made for that phase, and will say so
    return as_planned(plan, last.model_copy(update={"first_step": step, "last_step": None}))


def as_planned(plan: Plan, segment: Segment) -> Segment:
    """The segment with the shape and the end that the ledger has for one that begins at its first step."""
    end_step, shape = _stretch(plan, segment.first_step, segment.purpose)
    return segment.model_copy(update={"end_step": end_step, "shape": shape})


def _stretch(plan: Plan, first_step: int, purpose: Purpose) -> tuple[int, Shape]:
    """Where what begins at a step is to end, and its shape."""
    if purpose == "TuneTeacher" and plan.tuning is not None:
        return plan.tuning.steps, plan.tuning.shape
    return stretch_end(plan, first_step), plan.phase_at(first_step).shape


def next_segment(run: BitNetRun, plan: Plan, status: BitNetRunStatus, now: datetime) -> Segment:
    """The segment that is to follow, in a job of its own.

    Jobs are counted in the status: when this is decided again, because it was never written, it names the
    same child.
    """
    last = status.segments[-1] if status.segments else None
    purpose = _purpose(plan, status)
    if purpose == "TuneTeacher":
        first_step = max((segment.checkpoint_step or 0 for segment in status.segments), default=0)
    else:
        first_step = status.checkpoint_step or 0
    end_step, shape = _stretch(plan, first_step, purpose)
    begins = SegmentReason.TEACHER_TUNING if purpose == "TuneTeacher" else SegmentReason.START
    return Segment(
        index=len(status.segments),
        reason=begins if last is None else last.then or SegmentReason.RETRY,
        job=f"{run.metadata.name}-{len({segment.job for segment in status.segments})}",
        first_step=first_step,
        end_step=end_step,
        shape=shape,
        purpose=purpose,
        pods=pods_name(run.spec, plan, first_step, purpose),
        started_at=timestamp(now),
    )


def _purpose(plan: Plan, status: BitNetRunStatus) -> Purpose:
    if plan.tuning is None:
        return "Train"
    tuned = any(
        segment.purpose == "TuneTeacher" and segment.outcome is SegmentOutcome.COMPLETED
        for segment in status.segments
    )
    return "Train" if tuned else "TuneTeacher"


def order_of(run: BitNetRun, plan: Plan, segment: Segment) -> Order:
    """What the pods of a segment are handed."""
    return Order(
        namespace=run.metadata.namespace,
        name=run.metadata.name,
        job=segment.job,
        spec=run.spec,
        plan=plan,
        first_step=0 if segment.purpose == "TuneTeacher" else segment.first_step,
        purpose=segment.purpose,
    )


def pods_of_first_phase(order: Order) -> Pods:
    """The pods that an order is for."""
    plan = order.plan
    tunes = order.purpose == "TuneTeacher"
    return pods_of(order.spec, 0 if tunes else plan.phases.index(plan.phase_at(order.first_step)))


def pods_of_order(order: Order) -> str:
    """`pods_name` of the segment that an order was written for."""
    return pods_name(order.spec, order.plan, order.first_step, order.purpose)


def pods_name(spec: BitNetRunSpec, plan: Plan, first_step: int, purpose: Purpose) -> str:
    """Names what a person can change of a job's pods that begin at a step: pods, template, processes, and the
    micro batches of the phases that train in the same pods."""
    first = 0 if purpose == "TuneTeacher" else plan.phases.index(plan.phase_at(first_step))
    while purpose == "Train" and first and not plan.phases[first].new_pods:
        first -= 1
    micro_batches = [micro_batch_of(spec, first)]
    for index in range(first + 1, len(plan.phases)):
        if purpose == "TuneTeacher" or plan.phases[index].new_pods:
            break
        micro_batches.append(micro_batch_of(spec, index))
    said = [pods_of(spec, first), spec.workers.parallelism, micro_batches, purpose]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def spec_changed(run: BitNetRun, plan: Plan, status: BitNetRunStatus) -> bool:
    """Whether a person has changed what the last segment's pods were made from."""
    last = status.segments[-1]
    return pods_name(run.spec, plan, job_began(status), last.purpose) != last.pods


def removal_order(run: BitNetRun, plan: Plan) -> Order:
    """What the pod is handed that removes what a deleted run keeps: the order of its first pods."""
    name = run.metadata.name
    job = removal_job(name)
    return Order(namespace=run.metadata.namespace, name=name, job=job, spec=run.spec, plan=plan)


def removal_job(name: str) -> str:
    """Name of the job that removes what the run `name` keeps."""
    return f"{name}-removal"


def removal_name(run: BitNetRun) -> str:
    """Names what a removal's pod is made from: the run itself, not another of its name, and its template."""
    said = [run.metadata.uid, run.spec.checkpoint.uri, pods_of(run.spec, 0).templates]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def told(spec: BitNetRunSpec) -> Told:
    """What pods are told of a spec that may change while they train."""
    return Told(
        every_steps=spec.checkpoint.every_steps,
        keep=spec.checkpoint.keep,
        required=spec.checkpoint.required,
        skip_steps=spec.health.non_finite.skip_steps,
    )


def strays(observation: Observation, after: BitNetRunStatus) -> tuple[str, ...]:
    """Live jobs that are not the open segment's: made by an operator that died before it wrote that down, or
    of a run that has ended. They would train beside it."""
    current = open_segment(after)
    kept = None if current is None else current.job
    return tuple(sorted(job.name for job in observation.jobs if job.state.live and job.name != kept))


def outlived(observation: Observation, beginning: str) -> tuple[str, ...]:
    """Jobs that ended before the last one: the last one's pods stay, for whoever wants to read why."""
    segments = observation.status.segments
    kept = {beginning, segments[-1].job if segments else beginning}
    return tuple(sorted(job.name for job in observation.jobs if job.name not in kept))


def still_running(observation: Observation, but: str | None) -> tuple[str, ...]:
    """Pods that still hold machines, and may still write, while another job than `but` is to begin."""
    names = set(observation.left_over)
    for job in observation.jobs:
        if job.name == but:
            continue
        names |= {pod.name for pod in job.pods if pod.running}
        if job.state.live or job.state is JobState.ENDING:
            names.add(job.name)
    return tuple(sorted(names))
