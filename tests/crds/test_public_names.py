"""The names that others may rely on: taking one away is a breaking change, and this test says so."""

import bitnet_crds


def test_public_names() -> None:
    assert bitnet_crds.__all__ == [
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
    assert all(hasattr(bitnet_crds, name) for name in bitnet_crds.__all__)
