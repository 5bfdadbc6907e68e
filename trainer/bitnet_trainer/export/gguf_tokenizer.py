"""A tokenizer as GGUF metadata: tokens, merges, special tokens, and the name of what splits text into words.

llama.cpp holds the splitting rules in its code and a file merely names one (llama.cpp, src/llama-vocab.cpp),
so the tokenizer's own rule is compared with each of them on a text in which they differ.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
from gguf import TokenType
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitnet_trainer.errors import BadInput


def _words(digits: str) -> PreTokenizer:
    """The rule of GPT-4's kind: contractions, letters, so many digits, signs, space."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return Sequence([Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    {
        "gpt-2": ByteLevel(add_prefix_space=False),
        "smollm": Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
        "qwen2": _words(r"\p{N}"),
        "llama-bpe": _words(r"\p{N}{1,3}"),
    }
)
"""By llama.cpp's name: of GPT-2, SmolLM and SmolLM2, Qwen2 and Qwen3, Llama 3."""

_PROBE = "It's  HE'LL\tpay $1234.50 (not 7)...\n\n  naïve 東京 x_1=2²;\r\nEND  \n "
"""Each two of the rules split it differently."""


def add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    """Adds a tokenizer, filled up with unused tokens to the model's vocabulary.

    Raises:
        BadInput: it is no byte-level BPE, splits text in no way that llama.cpp has, or has more tokens than
            the model.
    """
    name = pre_tokenizer_name(tokenizer)
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    if len(tokenizer) > rows:
        raise BadInput(
            f"the tokenizer has {len(tokenizer)} tokens and the model embeds {rows}, so GGUF cannot hold "
            "both; export another format"
        )
    tokens, types = _tokens(tokenizer, rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        special = gguf.SpecialVocab(Path(scratch), load_merges=True, n_vocab=rows)
    # Said in full, since llama.cpp else presumes what suits the splitting rule's first user.
    adds = _added(tokenizer)
    special.add_special_token = {"bos": adds[0], "eos": adds[1]}
    special.special_token_ids = {
        kind: token
        for kind in ("bos", "eos", "unk", "pad")
        if (token := getattr(tokenizer, f"{kind}_token_id")) is not None
    }
    special.add_to_gguf(writer, quiet=True)


def pre_tokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """llama.cpp's name for the rule that splits text into words. Raises BadInput where it has none."""
    bare: Any = getattr(tokenizer, "backend_tokenizer", None)
    kind = None if bare is None else json.loads(bare.to_str())["model"]["type"]
    if kind != "BPE" or bare.pre_tokenizer is None:
        raise BadInput(
            f"the tokenizer is a {type(tokenizer).__name__} of the kind {kind or 'unknown'}, and GGUF is "
            "written with byte-level BPE alone; export another format"
        )
    split = bare.pre_tokenizer.pre_tokenize_str(_PROBE)
    for name, rule in PRE_TOKENIZERS.items():
        if rule.pre_tokenize_str(_PROBE) == split:
            return name
    raise BadInput(
        f"the tokenizer splits text in another way than {', '.join(PRE_TOKENIZERS)}, which are those that "
        "GGUF can name; export another format"
    )


def _tokens(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[list[str], list[TokenType]]:
    """Token texts and types by id; ids without a token are unused."""
    tokens, types = [f"[PAD{index}]" for index in range(rows)], [TokenType.UNUSED] * rows
    for token, index in tokenizer.get_vocab().items():
        tokens[index], types[index] = token, TokenType.NORMAL
    for index, added in tokenizer.added_tokens_decoder.items():
        tokens[index] = added.content
        types[index] = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
    return tokens, types


def _added(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether the tokenizer puts its first and last special token around a text."""
    ids = tokenizer("a").input_ids
    return ids[0] == tokenizer.bos_token_id, ids[-1] == tokenizer.eos_token_id
