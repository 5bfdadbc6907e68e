"""The text a run trains on: its sources, how they are mixed, and how they are cut."""

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from bitnet_crds.errors import WrongValueError
from bitnet_crds.fields import Label, PositiveInt, refuse_duplicates
from bitnet_crds.locations import DataAddress
from bitnet_crds.quantities import Percentage
from bitnet_crds.record import Record

TEXT_SUFFIXES = (".txt", ".txt.gz")
"""How the names of files end that have no fields."""
HUB_KEYS = ("subset", "split", "revision")
"""Keys of a source that say which part of a hub's dataset is read."""


class Source(Record):
    """One source of training text."""

    name: Label
    """Names the source in metrics and errors."""
    uri: DataAddress
    """file:///path, pvc://claim/path or gs://bucket/path of a .txt, .txt.gz, .jsonl, .jsonl.gz, .jsonl.zst or
    .parquet file, or of a folder of them; or hf://organisation/name, a dataset of the hub, which is streamed:
    no more of it is fetched than the run can train on. With spec.classification a record has its label in
    `label`, and a dataset is read whole."""
    subset: str | None = Field(default=None, min_length=1, max_length=256)
    """Of a dataset that has several: which of them. Only with hf://."""
    split: str | None = Field(default=None, min_length=1, max_length=256)
    """The part of a dataset that is read, whole; train where it is not said. Only with hf://."""
    revision: str | None = Field(default=None, min_length=1, max_length=128)
    """Branch, tag or commit of a dataset. The run keeps to the commit that it has when the run begins. Only
    with hf://."""
    field: str = Field(default="text", min_length=1, max_length=256)
    """The key, or Parquet's column, that holds a record's text. Text files have none."""
    weight: float = Field(default=1.0, gt=0, le=1_000_000)
    """Share of the sequences that come from this source, relative to the others' weights."""

    @model_validator(mode="after")
    def _settings_have_a_meaning(self) -> "Source":
        if self.field != "text" and self.uri.endswith(TEXT_SUFFIXES):
            raise WrongValueError(
                f"field {self.field!r} has no meaning for a text file, which is one document",
                "Remove it",
                field="field",
            )
        for name in HUB_KEYS:
            if getattr(self, name) is not None and not self.uri.startswith("hf://"):
                raise WrongValueError(
                    f"{name} {getattr(self, name)!r} has no meaning for {self.uri!r}",
                    "Remove it, or use an hf:// address",
                    field=name,
                )
        return self


class Mixture(Record):
    """Whether the sources' shares stay as written, or follow what helps."""

    policy: Literal["Static", "Bandit", "Influence"] = "Static"
    """Static: the weights as written. Bandit: the source whose text is predicted worst is read most, and
    each one some (Online Data Mixing, arXiv 2312.02406); text that cannot be learned, such as noise, is
    predicted worst too. Influence: a source whose gradient points the way of the held-out
    text's gains weight (after DataInf, arXiv 2310.00902, on embedding and head), each share staying within 1%
    and 90%. The weights as written
    are where both begin."""
    every_steps: PositiveInt | None = None
    """With a policy other than Static: steps between measurements; 100 where it is not said."""
    smoothing: Annotated[float, Field(gt=0, le=1)] | None = None
    """With a policy other than Static: how far the shares (Influence) or the losses that they follow from
    (Bandit) go from the old to the newly measured each time; 0.1 where it is not said."""
    target: Label | None = None
    """With Influence: the source whose held-out text is to be predicted well. Without it all sources', by
    their weights as written."""

    @model_validator(mode="after")
    def _settings_have_a_meaning(self) -> "Mixture":
        if self.policy == "Static":
            for name in ("every_steps", "smoothing", "target"):
                if getattr(self, name) is not None:
                    key = type(self).model_fields[name].alias or name
                    raise WrongValueError(
                        f"{key} has no meaning with policy Static",
                        "Remove it, or write `policy: Influence`",
                        field=key,
                    )
        if self.policy == "Bandit" and self.target is not None:
            raise WrongValueError(
                "target has no meaning with policy Bandit, which goes by each source's own text",
                "Remove it, or write `policy: Influence`",
                field="target",
            )
        return self

    @property
    def measured_every(self) -> int:
        """Steps between measurements."""
        return self.every_steps or 100

    @property
    def smoothed_by(self) -> float:
        """How far shares, or losses, go to the newly measured."""
        return self.smoothing or 0.1


class Data(Record):
    """The text, and how it is cut into sequences."""

    sequence_length: int = Field(ge=8, le=1_048_576)
    """Tokens in one training sequence."""
    documents: Literal["Joined", "Separate"] = "Joined"
    """Joined: a sequence is one text, in which a document sees those before it. Separate: no document sees
    another of its sequence: attention stays inside it, positions begin anew with it, and its first token is
    not predicted. A document is what ends in the end-of-text token. A mask of sequenceLength squared a
    sequence comes with it on a CPU, and on a GPU where no kernel can be told of documents: before Ampere, for
    capped logits, windows shorter than a sequence, and documents of fewer than 64 tokens on average."""
    sources: tuple[Source, ...] = Field(min_length=1, max_length=64)
    """The sources, mixed by weight."""
    mixture: Mixture = Mixture()
    held_out: Percentage = Field(default="2%", validate_default=True)
    """The part of every source that is never trained on; the model is measured there before and after."""
    corrupt_share: Percentage = Field(default="0.1%", validate_default=True)
    """Up to this part of a source's records may be corrupt: they are left out, counted and named. Beyond it
    the run ends with an error; 0% allows none. The default forgives a broken line in a large crawl, and
    nothing in a source of fewer than a thousand records."""

    @field_validator("sources")
    @classmethod
    def _names_are_unique(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        refuse_duplicates("source", [source.name for source in sources])
        return sources

    @field_validator("held_out")
    @classmethod
    def _something_is_trained_on(cls, held_out: Fraction) -> Fraction:
        if not 0 < held_out < 1:
            raise WrongValueError(
                f"{float(held_out):.0%} of the text held out", "Write more than 0% and less than 100%"
            )
        return held_out

    @model_validator(mode="after")
    def _target_is_a_source(self) -> "Data":
        names = [source.name for source in self.sources]
        if self.mixture.target is not None and self.mixture.target not in names:
            raise WrongValueError(
                f"no source is named {self.mixture.target!r}",
                f"Write one of {', '.join(names)}",
                field="mixture.target",
            )
        return self
