"""A folder of a model's files that appears whole or not at all."""

import copy
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitnet_trainer.errors import CheckpointError


def write_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Lets `write` fill a folder beside `folder`, and renames it. An earlier export there is replaced.

    Args:
        folder: where to write; its parent is made if need be.
        write: writes the files, config.json among them, into the folder that it is given.

    Returns:
        `folder`.

    Raises:
        CheckpointError: the folder cannot be written, or holds files that are no export.
    """
    # What is replaced is deleted: nothing but a model may be.
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} holds files that are no export; move them away, or export to another folder"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        write(staged)
        # mkdtemp makes it readable by its owner alone.
        staged.chmod(0o755)
        _put_in_place(staged, folder)
    except (OSError, SafetensorError) as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, folder: Path) -> None:
    """Saves a model's tokenizer; a classifier's so that it pads with what the classifier takes for padding.

    transformers' classifiers read the last token that is not `config.pad_token_id`, whatever the mask says.
    """
    padding = model.config.pad_token_id
    if hasattr(model, "score") and padding is not None:
        beside: Any = copy.deepcopy(tokenizer)
        beside.pad_token = beside.convert_ids_to_tokens(padding)
        tokenizer = beside
    tokenizer.save_pretrained(folder)


def _put_in_place(staged: Path, folder: Path) -> None:
    """Renames staged to folder. No folder can be renamed onto a full one, so an old one steps aside first."""
    if not folder.is_dir():
        staged.rename(folder)
        return
    old = staged.with_name(f"{staged.name}-old")
    folder.rename(old)
    staged.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _unwritable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the export cannot be written to {folder}: {error}; "
        "make its parent writable, with room for the model"
    )
