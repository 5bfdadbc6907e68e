"""Training text: tokenised once, cut into sequences, mixed by weight, and found again after a stop."""

from bitnet_trainer.batch import SequenceId
from bitnet_trainer.data.corpus import Corpus, MixedSources, open_corpus
from bitnet_trainer.data.cursor import Cursor
from bitnet_trainer.data.hub import Dataset, pinned
from bitnet_trainer.data.labelled import LabelledCorpus, LabelledSource, open_labelled
from bitnet_trainer.data.mixture import Shares, explored, influenced, rewarded
from bitnet_trainer.data.origins import Origin, SourceText, place_in
from bitnet_trainer.data.packing import PackedSource
from bitnet_trainer.data.prefetch import Prefetch, StepRows, Wanted
from bitnet_trainer.data.records import Reading
from bitnet_trainer.data.sources import Heard, Kept, Tokenizer, nobody, open_source

__all__ = [
    "Corpus",
    "Cursor",
    "Dataset",
    "Heard",
    "Kept",
    "LabelledCorpus",
    "LabelledSource",
    "MixedSources",
    "Origin",
    "PackedSource",
    "Prefetch",
    "Reading",
    "SequenceId",
    "Shares",
    "SourceText",
    "StepRows",
    "Tokenizer",
    "Wanted",
    "explored",
    "influenced",
    "nobody",
    "open_corpus",
    "open_labelled",
    "open_source",
    "pinned",
    "place_in",
    "rewarded",
]
