"""Classifiers of sequences: BitNetLlama's own, and any causal LM turned into its architecture's."""

# transformers' base classes are not annotated.
# mypy: disable-error-code="no-untyped-call"

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from bitnet_trainer.errors import BadInput
from bitnet_trainer.last_token import at_last_token
from bitnet_trainer.models.bitnet_llama import (
    BitNetLlamaConfig,
    BitNetLlamaModel,
    BitNetLlamaPreTrainedModel,
)


class BitNetLlamaForSequenceClassification(BitNetLlamaPreTrainedModel):
    """A BitNetLlama without a head, and `score`, which reads the last token of each row."""

    def __init__(self, config: BitNetLlamaConfig) -> None:
        super().__init__(config)
        self.num_labels = len(config.id2label or ())
        self.model = BitNetLlamaModel(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
    ) -> SequenceClassifierOutput:
        """`logits` (B, labels) of each row's last token; arguments as in `BitNetLlamaModel.forward`.

        The last token is the last that attention_mask (B, S) does not call padding, on whichever side that
        is; of a row that is all padding it is the first position.

        Raises:
            BadInput: attention_mask is not (B, S).
        """
        tokens = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if tokens.shape != input_ids.shape:
            raise BadInput(
                f"a classifier finds the last token by an attention_mask of input_ids' shape "
                f"{tuple(input_ids.shape)}, not {tuple(tokens.shape)}; give it one row a sequence"
            )
        base = self.model(input_ids, attention_mask, position_ids, use_cache, output_hidden_states)
        return SequenceClassifierOutput(
            logits=self.score(at_last_token(base.last_hidden_state, tokens.bool())),
            hidden_states=base.hidden_states,
        )


def classifier_from(model: PreTrainedModel, labels: Sequence[str]) -> PreTrainedModel:
    """The classifier of a causal LM's architecture, around the LM's own backbone: no weight is copied.

    Its `score` (labels, D) is new: normal with the config's `initializer_range`, from torch's generator, so
    the same after the same torch.manual_seed. The LM's head is left behind; the LM itself stays as it was.

    transformers' own classifiers read the last token that is not `config.pad_token_id`. Where the config has
    none it gets the end-of-text token; sequences are then to be padded with that, and not to end in it.

    Args:
        model: a causal LM of an architecture that has a classifier, transformers' or ours; converted or not.
        labels: names of the labels, in the order of the logits.

    Raises:
        BadInput: there is no classifier for the model, or it would not know padding from text.
    """
    name = type(model).__name__
    config = copy.deepcopy(model.config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    if config.pad_token_id is None:
        end = config.eos_token_id
        config.pad_token_id = end[0] if isinstance(end, list) else end
    if config.pad_token_id is None and not isinstance(config, BitNetLlamaConfig):
        raise BadInput(
            f"the config of this {name} has no pad_token_id and no eos_token_id, so its classifier would not "
            "know padding from text; set one of them as its tokenizer has it"
        )
    try:
        # Shapes alone: the backbone's weights are there already.
        with torch.device("meta"):
            classifier: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise BadInput(
            f"no classifier of sequences is known for {name}; use a model of an architecture that has one, "
            "such as Llama or Qwen3"
        ) from error
    backbone: Any = model.base_model
    setattr(classifier, classifier.base_model_prefix, backbone)
    embeddings = backbone.get_input_embeddings().weight
    score = torch.empty(len(labels), embeddings.shape[1]).normal_(std=config.initializer_range)
    classifier.score.weight = nn.Parameter(score.to(embeddings))
    finished: PreTrainedModel = classifier.train(model.training)
    return finished


AutoModelForSequenceClassification.register(BitNetLlamaConfig, BitNetLlamaForSequenceClassification)
