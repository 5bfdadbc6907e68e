"""The text of a run as its data takes it: where each source is, and how much is asked of it."""

from collections.abc import Sequence
from dataclasses import replace

from bitnet_crds.data import Source
from bitnet_crds.demand import sequences_at_most
from bitnet_crds.locations import parse_location
from bitnet_crds.plan import plan
from bitnet_crds.protocol import Order
from bitnet_trainer.data import Dataset, Origin, SourceText, pinned, place_in
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.record import RunRecord
from bitnet_trainer.tuned_teacher import tuning_of


def source_texts(order: Order, ranks: Ranks) -> list[SourceText]:
    """The sources, the same on every rank. Raises DataUnavailable for a dataset that the hub does not have.

    A dataset is read at the commit that it had when the run began, which run.json tells, and as much of it as
    the run was to ask for then: whatever befalls it, its text stays the same. Where a teacher is tuned, it
    and the run read the same text, as much as the longer of them can ask for: else the tail that is held out
    would be another one, and the teacher could be tuned on it.
    """
    return ranks.from_first(_source_texts(order) if ranks.first else None)


def _source_texts(order: Order) -> list[SourceText]:
    tuning = tuning_of(order)
    orders = [order] if tuning is None else [order, tuning]
    found = (RunRecord.read(each.folder / "run.json") for each in orders)
    records = [record for record in found if record is not None]
    # Where a phase was cut short, the next may come to its text again.
    ledgers = [plan(order.spec), *(each.plan for each in orders[1:])]
    demands = [sequences_at_most(each.spec, ledger) for each, ledger in zip(orders, ledgers, strict=True)]
    # A classifier's records may be sorted by label, and the first ones be of one.
    limited = order.spec.classification is None
    return [
        SourceText(
            source.name,
            _pinned(source, records),
            source.weight,
            source.field,
            max(most[source.name] for most in demands) if limited else None,
        )
        for source in order.spec.data.sources
    ]


def origin_of(source: Source) -> Origin:
    """Where a source is, as written."""
    location = parse_location(source.uri)
    if location.scheme == "hf":
        return Dataset(location.rest, source.subset, source.split or "train", source.revision)
    if location.bucket is not None and location.object is not None:
        return place_in(location.bucket, location.object)
    return location.path


def _pinned(source: Source, records: Sequence[RunRecord]) -> Origin:
    origin = origin_of(source)
    if not isinstance(origin, Dataset):
        return origin
    for record in records:
        reading = record.sources.get(source.name)
        # Whatever else of the run may have changed.
        same = any(origin_of(earlier) == origin for earlier in record.spec.data.sources)
        if reading is not None and reading.revision is not None and same:
            return replace(origin, revision=reading.revision)
    return pinned(source.name, origin)
