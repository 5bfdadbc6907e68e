"""The text of a run as its data takes it: where each source is, and how much is asked of it."""

from dataclasses import replace

from bitnet_crds.data import Source
from bitnet_crds.demand import sequences_at_most
from bitnet_crds.locations import parse_location
from bitnet_crds.protocol import Order
from bitnet_trainer.data import Dataset, Origin, SourceText, pinned, place_in
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.record import RunRecord


def source_texts(order: Order, ranks: Ranks) -> list[SourceText]:
    """The sources, the same on every rank. Raises DataUnavailable for a dataset that the hub does not have.

    A dataset is read at the commit that it had when the run began, which run.json tells.
    """
    return ranks.from_first(_source_texts(order) if ranks.first else None)


def _source_texts(order: Order) -> list[SourceText]:
    record = RunRecord.read(order.folder / "run.json")
    most = sequences_at_most(order.spec, order.plan)
    # A classifier's records may be sorted by label, and the first ones be of one.
    limited = order.spec.classification is None
    return [
        SourceText(
            source.name,
            _pinned(source, record),
            source.weight,
            source.field,
            most[source.name] if limited else None,
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


def _pinned(source: Source, record: RunRecord | None) -> Origin:
    origin = origin_of(source)
    if not isinstance(origin, Dataset):
        return origin
    reading = record.sources.get(source.name) if record is not None else None
    # Whatever else of the run may have changed.
    same = record is not None and any(origin_of(earlier) == origin for earlier in record.spec.data.sources)
    if reading is not None and reading.revision is not None and same:
        return replace(origin, revision=reading.revision)
    return pinned(source.name, origin)
