"""admission: what is said to whoever creates or changes a run, before it is stored. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitnet_crds import BitNetRun, InvalidRun, Plan, parse_run, plan
from bitnet_crds.advice import advise
from bitnet_operator.pod_template import check_templates


@dataclass(frozen=True)
class Review:
    """The answer to one request."""

    refusal: str | None = None
    """Every problem with its field and mend, a line each: the words that the run's condition `Accepted` would
    have. None where the run is taken."""
    warnings: tuple[str, ...] = ()
    """What is known against a run that is taken; kubectl shows each after `Warning:`."""


def accepted(document: Mapping[str, Any]) -> tuple[BitNetRun, Plan]:
    """The run and its ledger. Raises InvalidRun for whatever can be found wrong without a cluster."""
    run = parse_run(document)
    ledger = plan(run.spec)
    check_templates(run.spec)
    return run, ledger


def review(document: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> Review:
    """Reviews a run that is created, or that comes in the place of `old`.

    What may not change is the schema's to refuse (`bitnet_crds.changes`): the API server asks it before. A
    run whose spec stays as it was is taken whatever it says, and so is one that is being deleted: labels can
    be set and finalizers taken off though an earlier version took what this one would refuse.
    """
    if "deletionTimestamp" in document.get("metadata", {}):
        return Review()
    if old is not None and old.get("spec") == document.get("spec"):
        return Review()
    try:
        run, ledger = accepted(document)
    except InvalidRun as invalid:
        return Review(refusal=str(invalid))
    return Review(warnings=tuple(map(str, advise(run.spec, ledger))))
