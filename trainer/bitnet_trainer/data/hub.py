"""Datasets of the Hugging Face hub, streamed: no more of one is fetched than is read."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from bitnet_trainer import hub
from bitnet_trainer.data.records import ROWS_AT_ONCE, Fields, Record, Tally, columns_of, row_of, sound
from bitnet_trainer.errors import DataUnavailable

_log = logging.getLogger(__name__)

_REQUEST_SECONDS = 30.0
_LONGEST_REASON = 500
"""Characters of another library's message that an error repeats."""
_MEND = (
    "Check its name, revision, subset and split, this machine's way to the hub, and HF_TOKEN for a gated or "
    "private dataset"
)


@dataclass(frozen=True)
class Dataset:
    """A split of a dataset of the hub."""

    repository: str
    """`organisation/name`."""
    subset: str | None = None
    """One of those that it has; None for its only or default one."""
    split: str = "train"
    revision: str | None = None
    """Branch, tag or commit; a commit when it is `pinned`."""

    def __str__(self) -> str:
        whole = "/".join(part for part in (self.repository, self.subset, self.split) if part)
        return f"hf://{whole}" + (f"@{self.revision[:12]}" if self.revision else "")


def pinned(name: str, dataset: Dataset) -> Dataset:
    """The dataset of source `name` at the commit that its revision stands for now.

    So all ranks read one commit, and a run that goes on the one that it began with. Where the hub cannot be
    reached, it is the commit that this machine has in the cache of `datasets`. Raises DataUnavailable.
    """
    with _said_plainly(name, dataset):
        if _within_reach():
            api = HfApi(endpoint=constants.ENDPOINT)
            found = api.dataset_info(dataset.repository, revision=dataset.revision, timeout=_REQUEST_SECONDS)
            return replace(dataset, revision=found.sha)
        commit = str(_cached(dataset).hash)
        if dataset.revision not in (None, commit) and commit != _commit_of(dataset):
            raise _other_commit(name, dataset, commit)
        _log.warning("source %r: the hub is out of reach; the cache has %s, commit %s", name, dataset, commit)
        return replace(dataset, revision=commit)


def documents_of(name: str, dataset: Dataset, field: str, tally: Tally) -> Iterator[Record]:
    """The records of source `name` in the dataset's order, less those that are corrupt; all are counted.

    A label that the dataset holds as a number of named classes is given by its name. Raises DataUnavailable
    where the dataset, its subset, its split or its column `field` is not there, or cannot be read.
    """
    with _said_plainly(name, dataset):
        rows = _rows(name, dataset, field)
        yield from sound(rows, tally, field)


def _rows(name: str, dataset: Dataset, field: str) -> Iterator[tuple[str, Fields]]:
    stream = _stream(name, dataset, field)
    classes = getattr((stream.features or {}).get("label"), "names", None)
    number = 0
    for table in stream.with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        columns = columns_of(name, str(dataset), table.column_names, field)
        part = table.select(columns)
        for row in range(part.num_rows):
            number += 1
            yield f"{dataset}, row {number}", partial(_named_label, part, row, classes)


def _named_label(table: Any, row: int, classes: list[str] | None) -> dict[str, Any]:
    fields = row_of(table, row)
    if classes is not None and isinstance(number := fields.get("label"), int) and 0 <= number < len(classes):
        fields["label"] = classes[number]
    return fields


def _stream(name: str, dataset: Dataset, field: str) -> Any:
    """The split as an IterableDataset; of a column format the wanted columns alone."""
    builder = _streamed(dataset) if _within_reach() else _cached(dataset)
    if builder.hash != dataset.revision:
        raise _other_commit(name, dataset, builder.hash)
    stream = builder.as_streaming_dataset(split=dataset.split)
    if hasattr(builder.config, "columns") and stream.features is not None:
        # All are known from the first file's schema; once some are named, no other is fetched.
        builder.config.columns = columns_of(name, str(dataset), list(stream.features), field)
        builder.config.batch_size = ROWS_AT_ONCE
        stream = builder.as_streaming_dataset(split=dataset.split)
    return stream


def _within_reach() -> bool:
    return _may_be_asked() and hub.answers()


def _may_be_asked() -> bool:
    return not (_library().config.HF_HUB_OFFLINE or constants.HF_HUB_OFFLINE)


def _library() -> Any:
    # It takes longer to import than all else here, and most runs read no such source.
    import datasets  # type: ignore[import-untyped]

    return datasets


def _streamed(dataset: Dataset) -> Any:
    """What reads the dataset from the hub."""
    return _library().load_dataset_builder(dataset.repository, name=dataset.subset, revision=dataset.revision)


def _cached(dataset: Dataset) -> Any:
    """What reads the dataset from the cache, where `datasets.load_dataset` has put it whole."""
    library = _library()
    asked, library.config.HF_HUB_OFFLINE = library.config.HF_HUB_OFFLINE, True
    try:
        return _streamed(dataset)
    finally:
        library.config.HF_HUB_OFFLINE = asked


def _commit_of(dataset: Dataset) -> str | None:
    """The commit that a branch or tag stood for when this machine last asked; None where it never did."""
    folder = repo_folder_name(repo_id=dataset.repository, repo_type="dataset")
    ref = Path(constants.HF_HUB_CACHE, folder, "refs", dataset.revision or "main")
    return ref.read_text().strip() if ref.is_file() else None


def _other_commit(name: str, dataset: Dataset, found: object) -> DataUnavailable:
    return DataUnavailable(
        f"source {name!r}: {dataset} cannot be reached at {constants.ENDPOINT}, and the cache has commit "
        f"{found} of it. Check this machine's way to the hub, or load that revision into the cache.",
        transient=_may_be_asked(),
    )


@contextmanager
def _said_plainly(name: str, dataset: Dataset) -> Iterator[None]:
    """Turns what the libraries raise into DataUnavailable."""
    try:
        yield
    except DataUnavailable:
        raise
    # Anything at all: a file of any format can be broken in ways that only its reader knows.
    except Exception as error:
        if isinstance(error, GatedRepoError):
            reason = "it is gated, and this token may not read it"
        elif isinstance(error, RepositoryNotFoundError):
            reason = "there is no such dataset, or it is private"
        elif isinstance(error, RevisionNotFoundError):
            reason = f"it has no revision {dataset.revision!r}"
        else:
            reason = " ".join(str(error).split())[:_LONGEST_REASON].rstrip(".") or type(error).__name__
        away = not isinstance(error, HfHubHTTPError) and not _within_reach()
        if away:
            reason = f"{constants.ENDPOINT} is out of reach, and it is not in the cache ({reason})"
        raise DataUnavailable(
            f"source {name!r}: {dataset} cannot be read: {reason}. {_MEND}.",
            transient=hub.is_transient(error, out_of_reach=away and _may_be_asked()),
        ) from error
