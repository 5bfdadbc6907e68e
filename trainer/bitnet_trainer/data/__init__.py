"""Training text: tokenised once, packed into sequences, mixed by weight, and found again after a stop."""

from bitnet_trainer.data.corpus import Corpus, SourceText, open_corpus
from bitnet_trainer.data.cursor import Cursor, SequenceId
from bitnet_trainer.data.mixture import StaticMixture
from bitnet_trainer.data.packing import PackedSource
from bitnet_trainer.data.sources import Tokenizer, open_source

__all__ = [
    "Corpus",
    "Cursor",
    "PackedSource",
    "SequenceId",
    "SourceText",
    "StaticMixture",
    "Tokenizer",
    "open_corpus",
    "open_source",
]
