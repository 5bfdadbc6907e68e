"""`python -m bitnet_trainer.compare MODEL --text FILE`: perplexity on a text, speed and size of models."""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitnet_trainer.command import run_command
from bitnet_trainer.errors import BadInput, DataUnavailable, ModelUnavailable
from bitnet_trainer.evaluate import negative_log_likelihood, perplexity_of
from bitnet_trainer.export.trained import is_run, load_trained
from bitnet_trainer.models.load import load_model
from bitnet_trainer.models.packed import load_packed

LONGEST_SEQUENCE = 1024
"""Tokens that a model reads at once, unless it is told or can read no more than fewer."""
BATCH = 8
"""Sequences in one forward pass."""


@dataclass(frozen=True)
class Figures:
    """What one model is worth on a text."""

    perplexity: float
    tokens: int
    """How many were predicted."""
    tokens_per_second: float
    """Read, in one forward pass of several sequences; the time to load is not in it."""
    bytes: int
    """Of its parameters and buffers, in memory."""


def main() -> None:
    """Prints a line for each model."""
    parser = argparse.ArgumentParser(prog="python -m bitnet_trainer.compare")
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--against")
    parser.add_argument("--sequence-length", type=int)
    arguments = parser.parse_args()
    sys.exit(
        run_command(
            lambda: compare(arguments.model, arguments.against, arguments.text, arguments.sequence_length)
        )
    )


def load_any(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a language model: a run, a checkpoint, an export of any format, or any address of a model.

    transformers reads GGUF files back to full precision, and does not quantise inputs of theirs.

    Raises:
        ModelUnavailable: nothing is there, or it has no tokenizer.
        BadInput: it is a classifier.
    """
    path = Path(source)
    tokenizer: PreTrainedTokenizerBase | None
    if "://" in source:
        loaded = load_model(source)
        model, tokenizer = loaded.model, loaded.tokenizer
    elif is_run(path):
        trained = load_trained(path)
        model, tokenizer = trained.model, trained.tokenizer
    elif (path / "bitnet.json").is_file():
        model, tokenizer = load_packed(path)
    else:
        loaded = load_model(f"file://{path.resolve()}")
        model, tokenizer = loaded.model, loaded.tokenizer
    if tokenizer is None:
        raise ModelUnavailable(f"{source} has no tokenizer, so it cannot read a text; export it with one")
    if hasattr(model, "score"):
        raise BadInput(f"{source} is a classifier, which predicts no token; name a language model")
    return model, tokenizer


def measure(model: PreTrainedModel, tokens: Tensor, length: int) -> Figures:
    """Perplexity, speed and size on `tokens` (T), cut into sequences of `length`; the last may be shorter.

    Raises:
        BadInput: the text has fewer than two tokens.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cast("nn.Module", model).to(device)
    whole = len(tokens) // length * length
    total, predicted, begun = 0.0, 0, time.perf_counter()
    for sequences in (tokens[:whole].view(-1, length), tokens[None, whole:]):
        if sequences.shape[1] > 1:
            nats, count = negative_log_likelihood(model, sequences, BATCH, device)
            total, predicted = total + nats, predicted + count
    seconds = time.perf_counter() - begun
    perplexity = perplexity_of(total, predicted)
    held = [*model.parameters(), *model.buffers()]
    return Figures(
        perplexity.value,
        perplexity.tokens,
        len(tokens) / seconds,
        sum(tensor.nbytes for tensor in held),
    )


def compare(source: str, against: str | None, text: Path, length: int | None) -> None:
    """Prints the figures of one model, or of two, on a text, in sequences of `length` tokens.

    Raises:
        DataUnavailable: the text cannot be read or is empty.
        BadInput: a model cannot read so many tokens at once, or the two read the text as other tokens.
        ModelUnavailable: as `load_any`.
    """
    content = _read(text)
    seen: list[Tensor] = []
    rows: list[tuple[str, Figures]] = []
    for name in (source, against):
        if name is None:
            continue
        model, tokenizer = load_any(name)
        tokens = torch.tensor(tokenizer(content, verbose=False).input_ids)
        if seen and not torch.equal(seen[0], tokens):
            raise BadInput(
                f"{name} reads the text as other tokens than {source}, so that their perplexities cannot be "
                "compared; name a teacher with the same tokenizer"
            )
        seen.append(tokens)
        longest = getattr(model.config, "max_position_embeddings", LONGEST_SEQUENCE)
        length = length or min(longest, LONGEST_SEQUENCE)
        if not 2 <= length <= longest:
            raise BadInput(f"{name} reads 2 to {longest} tokens at once and not {length}; choose among those")
        rows.append((name, measure(model, tokens, length)))
        del model
    print(f"{rows[0][1].tokens:,} tokens of {text} predicted, in sequences of {length}")
    print(f"{'perplexity':>12} {'tokens/s':>10} {'bytes':>16}  model")
    for name, figures in rows:
        print(f"{figures.perplexity:>12.4f} {figures.tokens_per_second:>10,.0f} {figures.bytes:>16,}  {name}")


def _read(text: Path) -> str:
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataUnavailable(f"the text {text} cannot be read ({error}); name a file in UTF-8") from error
    if not content.strip():
        raise DataUnavailable(f"{text} holds no text; name a file that does")
    return content


if __name__ == "__main__":
    main()
