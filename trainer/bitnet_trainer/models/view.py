"""A transformers-like model as objectives see it: hidden states, the head apart, and what is captured."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitnet_trainer.answer import Answer, Capture, Projections
from bitnet_trainer.models.attention import is_maskless, unmasked

_NOTHING = Capture()


class LanguageModel(nn.Module):
    """Wraps a decoder-only model: a causal LM, or a classifier of sequences.

    It holds the very modules of the model, so that an optimiser, a checkpoint or an export of the one is that
    of the other. DDP is put around this and FSDP2 into it: its forward is the whole forward pass, less the
    head.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """Its decoder layers, in order."""
        layers: nn.ModuleList = self._base.layers
        return layers

    @property
    def layers(self) -> int:
        """How many decoder layers it has."""
        return len(self.decoder_layers)

    @property
    def key_heads(self) -> int:
        """How many heads its keys and values have."""
        config = self.model.config
        return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        layers: Any = self.decoder_layers
        return int(layers[0].self_attn.head_dim)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        capture: Capture = _NOTHING,
        position_ids: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Answer:
        """One forward pass of input_ids (B, S) with attention_mask or position_ids (B, S), or neither.

        Of position_ids without a mask, decoders make a mask by themselves: a position that does not follow
        the one before begins a document, which sees no other. With `documents`, the `cumulative_lengths` of
        the position_ids, they need none where attention can do without.
        """
        packed: dict[str, Tensor] = {}
        hidden_states: dict[int, Tensor] = {}
        outputs: dict[tuple[int, str], Tensor] = {}
        with ExitStack() as hooks:
            if capture.hidden_states:
                for number, layer in enumerate(self.decoder_layers):
                    hooks.enter_context(_output(layer, hidden_states, number))
            for number in capture.projections:
                attention = self.decoder_layers[number].self_attn
                for name in ("q_proj", "k_proj", "v_proj"):
                    hooks.enter_context(_output(getattr(attention, name), outputs, (number, name)))
            known = attention_mask is None and (position_ids is None) == (documents is None)
            if known and is_maskless(self.model, input_ids, documents):
                hooks.enter_context(unmasked(self.model))
                packed = {} if documents is None else {"cu_seqlens": documents}
            hidden = self._base(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                use_cache=False,
                **packed,
            ).last_hidden_state
        return Answer(
            hidden=hidden,
            head=self.head,
            hidden_states=tuple(hidden_states[number] for number in sorted(hidden_states)),
            projections={
                number: Projections(*(outputs[number, name] for name in ("q_proj", "k_proj", "v_proj")))
                for number in capture.projections
            },
        )

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """(..., D) -> logits (..., V), or (..., labels) for a classifier.

        The very linear where its output is the logits, so that a loss can be computed together with it.
        """
        model: Any = self.model
        if hasattr(model, "score"):
            score: nn.Module = model.score
            return score
        linear: nn.Module = model.get_output_embeddings()
        cap = getattr(model.config, "final_logit_softcapping", None)
        return linear if cap is None else lambda hidden: torch.tanh(linear(hidden) / cap) * cap

    @property
    def _base(self) -> Any:
        return self.model.base_model


@contextmanager
def _output(module: nn.Module, kept: dict[Any, Tensor], key: object) -> Iterator[None]:
    """Inside, what `module` puts out is kept under `key`."""

    def keep(_module: nn.Module, _inputs: object, output: Any) -> None:
        kept[key] = output[0] if isinstance(output, tuple) else output

    handle = module.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()
