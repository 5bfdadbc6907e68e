"""A byte-level BPE tokenizer that is trained in a moment, splitting text as a named model family does."""

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

TEXT = (
    "It's the year 2024, and they'll say: We're 12345 strong.\n\n  HE'LL pay $99.50 (not 7), naïve 東京!\n"
    "the cat sat on the mat and the dog sat on the cat, because they were tired of standing all day.\n"
)


def byte_level_tokenizer(rule: PreTokenizer, vocabulary: int = 320) -> PreTrainedTokenizerFast:
    """Splits text by `rule`, has `<s>` and `</s>` as tokens 0 and 1, and adds neither by itself."""
    bare = Tokenizer(BPE())
    bare.pre_tokenizer = rule
    bare.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    bare.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")
