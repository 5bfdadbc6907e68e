"""BitNetLlama: our own decoder, laid out as transformers' Llama, with SubLN before the output projections.

Its linears are plain; `convert` makes BitLinears of them. Architecture: BitNet b1.58 2B4T, arXiv 2504.12285.
With the same weights transformers' own BitNetForCausalLM computes the same, which is how it is exported.
"""

# transformers' base classes are not annotated.
# mypy: disable-error-code="no-untyped-call"

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BitNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from bitnet_trainer.documents import begins
from bitnet_trainer.errors import BadInput
from bitnet_trainer.models.attention import attend
from bitnet_trainer.models.attention_logits import LayerLogits
from bitnet_trainer.models.heads import Heads, heads_of_codes
from bitnet_trainer.models.rope import angles, rotate
from bitnet_trainer.objectives.cross_entropy import cross_entropy
from bitnet_trainer.precision import at_least_float32


class BitNetLlamaConfig(PreTrainedConfig):
    """Sizes of a BitNetLlama. Names and meanings are those of transformers' BitNetConfig where it has them.

    Raises BadInput where the sizes do not go together.
    """

    model_type = "bitnet_llama"

    vocab_size: int = 49_152
    hidden_size: int = 576
    """D; also all query heads' channels together, as stock BitNet has it."""
    intermediate_size: int = 1536
    num_hidden_layers: int = 30
    num_attention_heads: int = 9
    num_key_value_heads: int = 3
    """Grouped-query attention: each serves num_attention_heads / num_key_value_heads query heads."""
    hidden_act: Literal["relu2", "silu"] = "relu2"
    """What the gate goes through: relu(x)^2, or x * sigmoid(x)."""
    max_position_embeddings: int = 8192
    rope_theta: float = 100_000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    """Standard deviation of new weights, which are normal; norms are 1."""
    tie_word_embeddings: bool = True
    has_lm_head: bool = True
    """False: `lm_head` is None and so are logits; what is left is a backbone."""
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    use_cache: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        heads, key_heads = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % (2 * heads):
            raise BadInput(
                f"hidden_size {self.hidden_size} is no multiple of 2 * num_attention_heads ({heads}): a head "
                "has a whole and even number of channels; change one of the two"
            )
        if heads % key_heads:
            raise BadInput(
                f"num_attention_heads {heads} is no multiple of num_key_value_heads {key_heads}; "
                "change one of the two"
            )
        if self.hidden_act not in ("relu2", "silu"):
            raise BadInput(f"hidden_act {self.hidden_act!r} is no gate of BitNetLlama; write relu2 or silu")

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.hidden_size // self.num_attention_heads


class RMSNorm(nn.Module):
    """`weight * x / sqrt(mean(x^2) + eps)` over the last dimension, the root in float32 or better.

    torch's own has one dtype for input and weight, which autocast parts.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        return self.weight * F.rms_norm(at_least_float32(x), self.weight.shape, eps=self.eps).to(x.dtype)


class BitNetLlamaAttention(nn.Module):
    """Causal grouped-query attention; SubLN before the output projection."""

    def __init__(self, config: BitNetLlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.groups = config.num_attention_heads // config.num_key_value_heads
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.attn_sub_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.largest_logits: LayerLogits | None = None

    def forward(
        self, hidden: Tensor, angle: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor:
        """hidden (B, S, D) -> (B, S, D); `mask` (B, 1, S, S) bool says who may look at whom, or `cu_seqlens`
        (N + 1,) where documents begin; with neither it is causal."""
        turns = angle.cos()[:, 0], angle.sin()[:, 0]
        heads = heads_of_codes(self, hidden, turns) or self._projected(hidden, angle)
        queries, keys, values = heads
        if mask is None and (hidden.is_cuda or cu_seqlens is not None):
            attended = attend(self, queries, keys, values, cu_seqlens=cu_seqlens)
        else:
            attended = self._masked(queries, keys, values, mask)
        out: Tensor = self.o_proj(self.attn_sub_norm(attended.flatten(2)))
        return out

    def _projected(self, hidden: Tensor, angle: Tensor) -> Heads:
        queries = rotate(self._heads(self.q_proj(hidden)), angle)
        keys = rotate(self._heads(self.k_proj(hidden)), angle)
        return queries, keys, self._heads(self.v_proj(hidden))

    def _masked(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """(B, heads, S, head_dim) each, fewer heads in keys and values -> (B, S, heads, head_dim)."""
        if self.largest_logits is not None and self.training:
            self.largest_logits(queries, keys, mask)
        keys, values = (each.repeat_interleave(self.groups, dim=1) for each in (keys, values))
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None
        ).transpose(1, 2)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, S, heads * head_dim) -> (B, heads, S, head_dim)."""
        batch, length, _ = x.shape
        return x.view(batch, length, -1, self.head_dim).transpose(1, 2)


class BitNetLlamaMLP(nn.Module):
    """`down(SubLN(up(x) * act(gate(x))))`."""

    def __init__(self, config: BitNetLlamaConfig) -> None:
        super().__init__()
        self.squared = config.hidden_act == "relu2"
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.ffn_sub_norm = RMSNorm(config.intermediate_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        gate = self.gate_proj(hidden)
        gate = F.relu(gate).square() if self.squared else F.silu(gate)
        out: Tensor = self.down_proj(self.ffn_sub_norm(self.up_proj(hidden) * gate))
        return out


class BitNetLlamaLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: BitNetLlamaConfig) -> None:
        super().__init__()
        self.self_attn = BitNetLlamaAttention(config)
        self.mlp = BitNetLlamaMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden: Tensor, angle: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None
    ) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), angle, mask, cu_seqlens)
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class BitNetLlamaPreTrainedModel(PreTrainedModel):
    """What transformers wants to know of each BitNetLlama class."""

    config_class = BitNetLlamaConfig
    config: BitNetLlamaConfig
    base_model_prefix = "model"
    _no_split_modules = ["BitNetLlamaLayer"]
    _supports_sdpa = True


class BitNetLlamaModel(BitNetLlamaPreTrainedModel):
    """The decoder less its head."""

    def __init__(self, config: BitNetLlamaConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(BitNetLlamaLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> BaseModelOutput:
        """
        Args:
            input_ids: (B, S).
            attention_mask: (B, S), not 0 for a token and 0 for padding, on either side; or (B, S, S) or
                (B, 1, S, S) bool, True where a query (row) may look at a key, such as a block a document. It
                is causal besides. A position that may look nowhere looks at itself, and is finite so.
            position_ids: (B, S) or (1, S); without them 0 to S - 1. Given without a mask, a position that
                does not follow the one before begins a document that sees no other, as in transformers.
            use_cache: there is no cache of keys and values; True is an error.
            output_hidden_states: whether to keep the embeddings and what each layer puts out, the last one
                behind the final norm, as transformers does.
            cu_seqlens: (N + 1,) int32, the `cumulative_lengths` of position_ids, instead of a mask.

        Raises:
            BadInput: a cache is asked for, or a mask or positions are of a shape or dtype that means nothing.
        """
        if use_cache:
            raise BadInput(
                "BitNetLlama keeps no cache of keys and values: call it with use_cache=False, or generate "
                "with the exported model, which transformers runs"
            )
        mask = _mask(input_ids, attention_mask, position_ids) if cu_seqlens is None else None
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        angle = angles(position_ids, self.config.head_dim, self.config.rope_theta)
        hidden = self.embed_tokens(input_ids)
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, angle, mask, cu_seqlens)
            states.append(hidden)
        hidden = states[-1] = self.norm(hidden)
        return BaseModelOutput(
            last_hidden_state=hidden, hidden_states=tuple(states) if output_hidden_states else None
        )


class BitNetLlama(BitNetLlamaPreTrainedModel):
    """The decoder with its head, or with `lm_head` None where the config says so."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: BitNetLlamaConfig) -> None:
        super().__init__(config)
        self.model = BitNetLlamaModel(config)
        self.lm_head: nn.Linear | None = None
        if config.has_lm_head:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        else:
            self._tied_weights_keys = {}
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
    ) -> CausalLMOutput:
        """Arguments and errors as in `BitNetLlamaModel.forward`.

        With labels (B, S), not shifted, -100 where nothing is predicted, `loss` is the mean cross-entropy of
        a token. `logits` are (B, S, V), or None without a head.

        Raises:
            BadInput: there are labels and no head.
        """
        base: BaseModelOutput = self.model(
            input_ids, attention_mask, position_ids, use_cache, output_hidden_states
        )
        logits = None if self.lm_head is None else self.lm_head(base.last_hidden_state)
        loss = None
        if labels is not None:
            if logits is None:
                raise BadInput(
                    "a BitNetLlama without a head predicts no token; build it with has_lm_head=True, "
                    "or make a classifier of it"
                )
            loss = cross_entropy(logits, labels).mean
        return CausalLMOutput(loss=loss, logits=logits, hidden_states=base.hidden_states)


@dataclass(frozen=True)
class HuggingFaceBitNet:
    """A BitNetLlama in the words of transformers' BitNetForCausalLM."""

    config: BitNetConfig
    state_dict: dict[str, Tensor]
    """By name; the model's own tensors, not copies."""


def as_huggingface_bitnet(model: BitNetLlama) -> HuggingFaceBitNet:
    """The config and weights with which transformers' stock BitNetForCausalLM computes the same logits.

    Raises:
        BadInput: the model has no head, which the stock class cannot be without.
    """
    if model.lm_head is None:
        raise BadInput(
            "this BitNetLlama has no lm_head, and transformers' BitNetForCausalLM is nothing without one; "
            "export it as it is, with save_pretrained"
        )
    ours = model.config
    config = BitNetConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.hidden_size,
        intermediate_size=ours.intermediate_size,
        num_hidden_layers=ours.num_hidden_layers,
        num_attention_heads=ours.num_attention_heads,
        num_key_value_heads=ours.num_key_value_heads,
        hidden_act=ours.hidden_act,
        max_position_embeddings=ours.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta},
        rms_norm_eps=ours.rms_norm_eps,
        initializer_range=ours.initializer_range,
        tie_word_embeddings=ours.tie_word_embeddings,
        bos_token_id=ours.bos_token_id,
        eos_token_id=ours.eos_token_id,
        pad_token_id=ours.pad_token_id,
    )
    config.architectures = ["BitNetForCausalLM"]
    return HuggingFaceBitNet(config, dict(model.state_dict()))


def _mask(input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> Tensor | None:
    """(B or 1, 1, S, S) bool: whether a query (row) may look at a key; None where it is merely causal."""
    batch, length = input_ids.shape
    if position_ids is not None and position_ids.shape not in {(batch, length), (1, length)}:
        raise BadInput(
            f"position_ids of shape {tuple(position_ids.shape)} do not fit input_ids of shape "
            f"{(batch, length)}; give one position a token, or none"
        )
    if attention_mask is None:
        if position_ids is None:
            return None
        document = begins(position_ids).cumsum(dim=1)
        allowed = document[:, :, None] == document[:, None, :]
    elif attention_mask.shape == (batch, length):
        allowed = attention_mask.bool()[:, None, :]
    elif attention_mask.dtype == torch.bool and attention_mask.shape in {
        (batch, length, length),
        (batch, 1, length, length),
    }:
        allowed = attention_mask.view(batch, length, length)
    else:
        raise BadInput(
            f"an attention_mask of shape {tuple(attention_mask.shape)} and {attention_mask.dtype} for "
            f"input_ids of shape {(batch, length)}; give (B, S), or bool of (B, S, S) or (B, 1, S, S)"
        )
    everywhere = torch.ones(length, length, dtype=torch.bool, device=input_ids.device)
    # Softmax over nothing is NaN, and one NaN in padding is NaN in every gradient.
    itself = torch.eye(length, dtype=torch.bool, device=input_ids.device)
    return ((allowed & everywhere.tril()) | itself)[:, None]


AutoConfig.register(BitNetLlamaConfig.model_type, BitNetLlamaConfig)
AutoModel.register(BitNetLlamaConfig, BitNetLlamaModel)
AutoModelForCausalLM.register(BitNetLlamaConfig, BitNetLlama)
