"""The contract of bitnet-operator: what a person writes, what a pod reports, and the ledger between them.

Imports pydantic and the standard library alone, so that the operator, the trainer and a user's own
scripts can all depend on it.
"""

from bitnet_crds.adjustments import Adjustments, Rollback
from bitnet_crds.errors import ContractError, InvalidRun, Problem
from bitnet_crds.parsing import parse_run
from bitnet_crds.plan import Plan, PlannedPhase, plan
from bitnet_crds.protocol import Checkpoint, ExitCode, Order, Progress, TerminationReport
from bitnet_crds.shapes import Shape
from bitnet_crds.spec import API_VERSION, KIND, BitNetRun, BitNetRunSpec
from bitnet_crds.status import BitNetRunStatus, Condition, Segment, SegmentReason

__all__ = [
    "API_VERSION",
    "KIND",
    "Adjustments",
    "BitNetRun",
    "BitNetRunSpec",
    "BitNetRunStatus",
    "Checkpoint",
    "Condition",
    "ContractError",
    "ExitCode",
    "InvalidRun",
    "Order",
    "Plan",
    "PlannedPhase",
    "Problem",
    "Progress",
    "Rollback",
    "Segment",
    "SegmentReason",
    "Shape",
    "TerminationReport",
    "parse_run",
    "plan",
]
