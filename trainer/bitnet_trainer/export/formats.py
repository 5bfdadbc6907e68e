"""The formats of an export by name: each in a place of its own below one folder."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitnet_crds.spec import ExportFormat
from bitnet_trainer.export.gguf import export_gguf
from bitnet_trainer.export.huggingface import export_huggingface
from bitnet_trainer.models.convert import ConversionReport
from bitnet_trainer.models.packed import write_packed


def write_export(
    name: ExportFormat,
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    report: ConversionReport,
) -> Path:
    """Writes a converted model as format `name` below `folder`; an earlier export there is replaced.

    Returns:
        The folder or file: huggingface/, huggingfacepacked/, packed/, gguf-tq2_0.gguf and so on.

    Raises:
        BadInput: the format cannot hold the model.
        CheckpointError: it cannot be written.
    """
    place = folder / name.lower()
    if name == "Packed":
        return write_packed(model, report, place, tokenizer)
    if name.startswith("GGUF"):
        return export_gguf(model, tokenizer, report, place.with_suffix(".gguf"), name)
    return export_huggingface(model, tokenizer, report, place, packed=name == "HuggingFacePacked")
