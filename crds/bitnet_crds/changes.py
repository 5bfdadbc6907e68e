"""What may change while a run exists, what begins a new segment, and what is refused."""

from bitnet_crds.cel import Rule
from bitnet_crds.machines import Workers
from bitnet_crds.record import Record
from bitnet_crds.spec import BitNetRunSpec, CheckpointPolicy

LIVE = {
    "health",
    "retries",
    "suspend",
    "tracking",
    "checkpoint.everySteps",
    "checkpoint.keep",
    "checkpoint.required",
    "checkpoint.onDelete",
}
"""What holds from when it is changed on, below spec. Pods that train are told what of it is for them, but for
`tracking` and `health.plateau`'s window, which the next segment's pods have."""
NEW_SEGMENT = {
    "workers.count",
    "workers.gpusPerWorker",
    "workers.microBatchSize",
    "workers.parallelism",
    "workers.template",
}
"""What ends the segment that trains, with a checkpoint, and begins another."""
MUTABLE = LIVE | NEW_SEGMENT
"""What may change while a run exists; everything else would make it another run."""
_IN_PARTS: dict[str, type[Record]] = {"workers": Workers, "checkpoint": CheckpointPolicy}
"""Blocks of which a part may change."""


def immutable() -> list[Rule]:
    """A rule for each field that may not change, taken from the models: a new field is immutable at first."""
    fields = [(name, info, "") for name, info in BitNetRunSpec.model_fields.items() if name not in _IN_PARTS]
    for block, model in _IN_PARTS.items():
        fields += [(name, info, f"{block}.") for name, info in model.model_fields.items()]
    rules = []
    for name, info, block in fields:
        field = f"{block}{info.alias or name}"
        if field in MUTABLE:
            continue
        always = info.is_required() or info.default is not None
        same = f"self.{field} == oldSelf.{field}"
        rules.append(
            Rule(
                same
                if always
                else f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || {same})",
                f"a run's {field} cannot change once it exists: make a new run",
                field_path=f".{field}",
            )
        )
    return rules
