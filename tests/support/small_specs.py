"""Specs of small runs, for tests of the ledger."""

from typing import Any

from bitnet_crds import BitNetRunSpec


def spec_of(**blocks: Any) -> BitNetRunSpec:
    """A small spec; each block given is laid over the one that stands here."""
    document: dict[str, Any] = {
        "model": {"from": "hf://a/b"},
        "data": {"sequenceLength": 8, "sources": [{"name": "text", "uri": "file:///text"}]},
        "budget": {"tokens": 80_000, "globalBatchSize": 8},
        "phases": [{"name": "main", "until": "100%", "objectives": {"crossEntropy": {"weight": 1}}}],
        "workers": {"count": 1, "gpusPerWorker": 1, "microBatchSize": 1},
        "checkpoint": {"uri": "file:///runs"},
    }
    for name, block in blocks.items():
        document[name] = {**document[name], **block} if name in document and name != "phases" else block
    return BitNetRunSpec.model_validate(document, by_alias=True, by_name=False)


def phases_of(shares: list[int], teacher_from: int | None) -> list[dict[str, Any]]:
    """Phases that end at `shares` percent; those from index `teacher_from` on distil."""
    return [
        {
            "name": f"phase-{index}",
            "until": f"{share}%",
            "objectives": {
                "crossEntropy": {"weight": 1},
                **(
                    {"teacherLogits": {"weight": 1}}
                    if teacher_from is not None and index >= teacher_from
                    else {}
                ),
            },
        }
        for index, share in enumerate(shares)
    ]
