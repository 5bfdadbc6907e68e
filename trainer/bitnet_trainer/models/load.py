"""Loading a pretrained causal LM and its tokenizer: from a folder, a GGUF file, a bucket or the hub."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import torch
from huggingface_hub import constants
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bitnet_crds.locations import Location, parse_location
from bitnet_trainer import hub
from bitnet_trainer.errors import ModelUnavailable
from bitnet_trainer.models import bitnet_llama, sequence_classification  # noqa: F401  # Auto classes know them then
from bitnet_trainer.models.folder import check_model_folder
from bitnet_trainer.models.gcs import local_copy

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
"""One of them at least is where a tokenizer is."""

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class LoadedModel:
    """A model as it was published, before any conversion."""

    model: PreTrainedModel
    """In float32 (the master weights), on the CPU, in evaluation mode."""
    tokenizer: PreTrainedTokenizerBase
    source: str
    """Where it came from: a path, gs://bucket/path, or `organisation/name` with `@revision` where one was
    asked for."""


class _Missing(TypedDict):
    """What transformers says of the weights that it did not find."""

    missing_keys: set[str]
    mismatched_keys: set[tuple[str, torch.Size, torch.Size]]


@dataclass(frozen=True)
class _Source:
    """An address in the words of transformers' `from_pretrained`."""

    name: str
    """A folder or a hub repository."""
    revision: str | None = None
    gguf_file: str | None = None
    copy_of: str | None = None
    """The address in a bucket of what the folder is a copy of."""
    only_local: bool = False
    """Whether the hub is out of reach, so that only what was fetched from it before can be had."""

    def __str__(self) -> str:
        if self.copy_of is not None:
            return self.copy_of
        if self.gguf_file is not None:
            return str(Path(self.name, self.gguf_file))
        return f"{self.name}@{self.revision}" if self.revision else self.name

    def arguments(self) -> dict[str, Any]:
        arguments = {
            "revision": self.revision,
            "gguf_file": self.gguf_file,
            "local_files_only": self.only_local or None,
        }
        return {name: value for name, value in arguments.items() if value is not None}


def load_model(address: str, revision: str | None = None) -> LoadedModel:
    """Loads the model and tokenizer at an address of the run.

    Args:
        address: `file:///path`, `pvc://claim/path`, `gs://bucket/path` (each a Hugging Face folder or one
            .gguf file) or `hf://organisation/name`.
        revision: branch, tag or commit of a hub repository.

    Raises:
        ModelUnavailable: nothing is there, it cannot be read, or weights or tokenizer are missing in it.
            What cannot be reached is known within a minute.
    """
    source = _resolve(address, revision)
    return LoadedModel(_weights(source, torch.float32), _tokenizer(source), str(source))


def load_tokenizer(address: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Loads the tokenizer alone; arguments and errors as in `load_model`."""
    return _tokenizer(_resolve(address, revision))


def load_vocabulary(address: str, revision: str | None = None) -> dict[str, int] | None:
    """Token ids by token at an address; None where there are weights and no tokenizer to tell.

    Raises ModelUnavailable where a folder holds a tokenizer that cannot be read.
    """
    source = _resolve(address, revision)
    try:
        return dict(_tokenizer(source).get_vocab())
    except ModelUnavailable:
        if any(Path(source.name, file).exists() for file in _TOKENIZER_FILES):
            raise
        return None


def load_weights(
    address: str, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Loads the model alone, on the CPU and in evaluation mode. Arguments and errors as in `load_model`."""
    return _weights(_resolve(address, revision), dtype)


def _tokenizer(source: _Source) -> PreTrainedTokenizerBase:
    def load() -> PreTrainedTokenizerBase:
        made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.name, **source.arguments())
        # transformers makes one up for some architectures where there is none, which knows no text at all.
        if set(made.get_vocab()) <= {*made.all_special_tokens, *made.get_added_vocab()}:
            raise ValueError("it has no vocabulary, special tokens aside")
        return made

    return _load(source, "tokenizer", "put tokenizer.json and tokenizer_config.json beside the weights", load)


def _weights(source: _Source, dtype: torch.dtype) -> PreTrainedModel:
    arguments = source.arguments()
    if source.gguf_file is not None:
        # Without it a GGUF's weights may stay in blocks, which nothing can train.
        arguments["quantization_config"] = GgufConfig(dequantize=True)
    # What it returns depends on output_loading_info, which its annotations do not say.
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    loaded: tuple[PreTrainedModel, _Missing] = _load(
        source,
        "model",
        "check that the files are whole and that transformers knows the architecture",
        lambda: from_pretrained(source.name, dtype=dtype, output_loading_info=True, **arguments),
    )
    model, info = loaded
    # transformers fills missing weights with random numbers and goes on.
    absent = sorted(info["missing_keys"] | {key for key, *_ in info["mismatched_keys"]})
    if absent:
        raise ModelUnavailable(
            f"{source} lacks {len(absent)} weights of {type(model).__name__}, such as {absent[0]}; "
            "the files are not whole, or not of this architecture: fetch them again"
        )
    if source.gguf_file is not None:
        _forget_gguf(model)
    model.train(False)
    return model


def _resolve(address: str, revision: str | None) -> _Source:
    """The folder and file, or the repository, that an address means. Raises ModelUnavailable."""
    try:
        location = parse_location(address)
    except ValueError as error:
        raise ModelUnavailable(str(error)) from None
    if location.scheme == "hf":
        return _Source(location.rest, revision, only_local=not hub.answers())
    if location.bucket is not None and location.object is not None:
        return replace(_named(local_copy(location.bucket, location.object)), copy_of=address)
    try:
        return _local(location, address)
    except OSError as error:
        raise ModelUnavailable(
            f"{location.path} cannot be looked at ({error.strerror}); let the user that trains read it"
        ) from error


def _local(location: Location, address: str) -> _Source:
    path = location.path
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelUnavailable(
                f"{path} is not a model: a single file must be a .gguf file; "
                "for safetensors name the folder that holds them and config.json"
            )
        return _named(path)
    if not path.exists():
        mend = (
            f"check that the claim {location.claim} is mounted and holds it"
            if location.claim
            else "correct the path"
        )
        raise ModelUnavailable(f"there is no model at {path} ({address}); {mend}")
    check_model_folder(str(path), address, {file.name for file in path.iterdir()})
    return _named(path)


def _named(path: Path) -> _Source:
    return _Source(str(path.parent), gguf_file=path.name) if path.is_file() else _Source(str(path))


def _load(source: _Source, what: str, mend: str, load: Callable[[], Loaded]) -> Loaded:
    try:
        return load()
    # Anything at all: the tokenizers library raises bare Exception for a broken file.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        if source.gguf_file is None and not Path(source.name).is_dir():
            if source.only_local:
                reason = f"{constants.ENDPOINT} is out of reach, and it was not fetched before ({reason})"
            mend = (
                "check its name and revision, this machine's way to the hub, and HF_TOKEN for a gated model; "
                "or put the model in a folder and name it with file:// or pvc://"
            )
        raise ModelUnavailable(
            f"the {what} of {source} cannot be loaded: {reason}; {mend}",
            transient=hub.is_transient(error, out_of_reach=source.only_local),
        ) from error


def _forget_gguf(model: PreTrainedModel) -> None:
    """Makes a dequantised GGUF model an ordinary one, so that saving it does not call it quantised."""
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    for name in ("is_quantized", "quantization_method", "hf_quantizer"):
        if hasattr(model, name):
            delattr(model, name)
