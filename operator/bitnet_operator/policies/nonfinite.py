"""Non-finite losses: back to the newest checkpoint from before the fault, and on without its batches."""

from bitnet_crds import Plan, TerminationReport
from bitnet_crds.adjustments import Adjustments, Rollback
from bitnet_crds.health import NonFinite
from bitnet_operator.policies.adjust import Adjusted, Exhausted


def after_non_finite(
    plan: Plan, adjustments: Adjustments, health: NonFinite, report: TerminationReport | None, message: str
) -> Adjusted | Exhausted:
    """What follows when more steps in a row than allowed were not finite, as `report` says.

    The newest checkpoint may hold what led to the fault, so it has to be one from before the first of those
    steps; where none is left, the run begins again. `plan` is the ledger that the steps were trained by.
    """
    fault = None if report is None else report.fault
    if report is None or fault is None:
        return Exhausted(f"{message} (it was not said which steps, so there is nothing to pass over)")
    done = len(adjustments.rollbacks)
    if done >= health.rollbacks:
        return Exhausted(f"{message} (after {done} roll-backs of at most {health.rollbacks})")
    checkpoint_step = max((step for step in report.checkpoints if step <= fault.first_step), default=0)
    first_batch = plan.batch_at(fault.first_step)
    batches = plan.batch_at(fault.first_step + fault.steps - 1) - first_batch + 1
    rollback = Rollback(
        checkpoint_step=checkpoint_step,
        first_batch=first_batch,
        batches=batches,
        learning_rate_factor=health.learning_rate_factor,
    )
    return Adjusted(
        adjustments.model_copy(update={"rollbacks": (*adjustments.rollbacks, rollback)}),
        f"{message} Back to step {checkpoint_step}; {batches} batches from {first_batch} on are passed over, "
        f"and learning rates are multiplied by {health.learning_rate_factor:g}",
        checkpoint_step,
    )
