"""A small run in three phases, the teacher in the last, and the order of its first job."""

import copy
from datetime import UTC, datetime
from typing import Any

from bitnet_crds import BitNetRun, BitNetRunStatus, Order, Plan, plan
from bitnet_operator.segments import next_segment, order_of

START = datetime(2026, 1, 1, tzinfo=UTC)

DOCUMENT: dict[str, Any] = {
    "apiVersion": "bitnet.training/v1alpha1",
    "kind": "BitNetRun",
    "metadata": {"name": "small", "namespace": "team", "uid": "u-1", "generation": 1, "resourceVersion": "7"},
    "spec": {
        "model": {"from": "file:///models/student"},
        "data": {"sequenceLength": 16, "sources": [{"name": "text", "uri": "file:///text"}]},
        "budget": {"tokens": 16 * 8 * 10, "globalBatchSize": 8},
        "phases": [
            {"name": "warmup", "until": "20%", "objectives": {"crossEntropy": {"weight": 1}}},
            {"name": "main", "until": "60%", "objectives": {"crossEntropy": {"weight": 1}}},
            {
                "name": "distill",
                "until": "100%",
                "objectives": {"crossEntropy": {"weight": 1}, "teacherLogits": {"weight": 1}},
            },
        ],
        "teacher": {"from": "file:///models/teacher"},
        "workers": {"count": 2, "gpusPerWorker": 0, "microBatchSize": 4},
        "checkpoint": {"uri": "file:///runs", "everySteps": 2},
        "retries": 2,
    },
}


def small_document(**spec: Any) -> dict[str, Any]:
    """The run as a person writes it, with these fields of its spec in place of its own."""
    document = copy.deepcopy(DOCUMENT)
    document["spec"] |= spec
    return document


def first_order(run: BitNetRun, ledger: Plan | None = None) -> Order:
    """What the pods of a run's first job are handed."""
    ledger = ledger or plan(run.spec)
    return order_of(run, ledger, next_segment(run, ledger, BitNetRunStatus(), START))
