"""What stock transformers can compute: which class of it a trained model is exported as, or why none is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import BitNetConfig, BitNetForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from bitnet_crds.spec import Quantization
from bitnet_trainer.errors import BadInput
from bitnet_trainer.export.gguf import gguf_obstacle
from bitnet_trainer.export.gguf_tokenizer import pre_tokenizer_name
from bitnet_trainer.models.bitnet_llama import as_huggingface_bitnet
from bitnet_trainer.models.convert import ARCHITECTURES

SubLN = Literal["None", "OutputProjections", "AllProjections"]
"""As in `spec.quantization.subLN`."""

HUGGING_FACE_FORMATS = ("HuggingFace", "HuggingFacePacked")
"""Those of `spec.export.formats` that stock transformers runs."""

_MEND = "write export.formats: [Packed]"


@dataclass(frozen=True)
class BitNetForm:
    """How a model is written as transformers' BitNetForCausalLM: a Llama with SubLN before o_proj and
    down_proj, whose MLP has no biases (its source: transformers, models/bitnet)."""

    obstacle: Callable[[Any], str | None]
    """What of a model BitNetForCausalLM has no equal for, in a few words; None where it has all."""
    config: Callable[[Any], BitNetConfig]
    """The model's config in BitNet's words."""
    renamed: Mapping[str, str]
    """The ends of names that differ: this model's -> BitNet's."""

    def build(self, model: nn.Module, weights: Mapping[str, Tensor]) -> BitNetForCausalLM:
        """A BitNetForCausalLM, not converted, that holds the very `weights` of `model`, by its names."""
        config = self.config(model)
        with torch.device("meta"):
            stock = BitNetForCausalLM(config)
        stock.load_state_dict({self._name(name): weight for name, weight in weights.items()}, assign=True)
        stock.tie_weights()
        if isinstance(model, PreTrainedModel) and model.can_generate():
            stock.generation_config = model.generation_config
        return stock

    def _name(self, name: str) -> str:
        for end, bitnet in self.renamed.items():
            if name.endswith(end):
                return name.removesuffix(end) + bitnet
        return name


def _llama_obstacle(model: Any) -> str | None:
    config = model.config
    if config.mlp_bias:
        return "biases in its MLP"
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        return (
            f"{config.num_attention_heads} heads of {config.head_dim}, which are not its "
            f"hidden size of {config.hidden_size}"
        )
    return None


def _llama_config(model: Any) -> BitNetConfig:
    given = model.config.to_dict()
    common = (BitNetConfig().to_dict().keys() & given.keys()) - {"model_type", "architectures"}
    return BitNetConfig(**{name: given[name] for name in sorted(common)})


def _headless(model: Any) -> str | None:
    return None if model.lm_head is not None else "no lm_head"


def _bitnet_llama_config(model: Any) -> BitNetConfig:
    return as_huggingface_bitnet(model).config


BITNET_FORMS: dict[tuple[str, SubLN], BitNetForm] = {
    ("LlamaForCausalLM", "OutputProjections"): BitNetForm(
        _llama_obstacle,
        _llama_config,
        {
            "self_attn.o_proj.rms_norm.weight": "self_attn.attn_sub_norm.weight",
            "mlp.down_proj.rms_norm.weight": "mlp.ffn_sub_norm.weight",
        },
    ),
    ("BitNetLlama", "None"): BitNetForm(_headless, _bitnet_llama_config, {}),
}
"""By architecture and `spec.quantization.subLN`. Each stands here when a test finds equal logits."""


def bitnet_form(model: nn.Module, quantization: Quantization) -> BitNetForm | None:
    """The form that `model` is exported in; None where it keeps its own class."""
    return BITNET_FORMS.get((type(model).__name__, quantization.sub_ln))


def check_exportable(
    model: nn.Module,
    quantization: Quantization,
    formats: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Refuses what a format cannot express; to be called before training, whether converted or not.

    Args:
        model: the student, not wrapped.
        quantization: what it is, or will be, converted by.
        formats: as in `spec.export.formats`. Packed holds anything.
        tokenizer: the student's, of which llama.cpp has to know the kind.

    Raises:
        BadInput: stock transformers, or llama.cpp, computes nothing equal to the model, so it cannot be in
            an export of that format; or llama.cpp cannot take text apart as the tokenizer does.
    """
    for name in formats:
        if name in HUGGING_FACE_FORMATS and (why := _inexpressible(model, quantization)) is not None:
            raise BadInput(f"stock transformers cannot run the export: {why}")
        if name == "HuggingFacePacked" and (why := _unpackable(model)) is not None:
            raise BadInput(f"stock transformers cannot run the export as {name}: {why}")
        if name.startswith("GGUF") and (why := gguf_obstacle(model, quantization, name)) is not None:
            raise BadInput(f"llama.cpp cannot run the export as {name}: {why}")
    if tokenizer is not None and any(name.startswith("GGUF") for name in formats):
        pre_tokenizer_name(tokenizer)


def _inexpressible(model: nn.Module, quantization: Quantization) -> str | None:
    architecture = type(model).__name__
    if quantization.weights != "AbsMean":
        return f"it has no {quantization.weights} weights; {_MEND}, or quantization.weights: AbsMean"
    if quantization.low_rank_correction is not None:
        return f"it has no low-rank correction; {_MEND}, or remove quantization.lowRankCorrection"
    form = bitnet_form(model, quantization)
    if form is not None:
        obstacle = form.obstacle(model)
        return (
            None
            if obstacle is None
            else f"this {architecture} has {obstacle}, unlike its BitNetForCausalLM; {_MEND}"
        )
    if quantization.sub_ln == "OutputProjections":
        able = ", ".join(sorted(name for name, sub_ln in BITNET_FORMS if sub_ln == quantization.sub_ln))
        return (
            f"it has a class with SubLN before the output projections for {able} and not for "
            f"{architecture}; {_MEND}, or quantization.subLN: AllProjections"
        )
    if not hasattr(transformers, architecture):
        return f"it has no class equal to {architecture}; {_MEND}"
    return None


def _unpackable(model: nn.Module) -> str | None:
    ends = ARCHITECTURES.get(type(model).__name__, ())  # others are for `convert` to refuse
    for name, linear in model.named_modules():
        if name.endswith(ends) and isinstance(linear, nn.Linear) and linear.out_features % 4:
            return (
                f"{name} has {linear.out_features} rows, of which it packs four in one; formats that do fit: "
                "HuggingFace, Packed"
            )
    return None
