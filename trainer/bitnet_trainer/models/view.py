"""A transformers-like model as objectives see it: hidden states, the head apart, and what is captured."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitnet_trainer.answer import Answer, Capture, Projections
from bitnet_trainer.models.attention import is_maskless, unmasked
from bitnet_trainer.precision import dtype_of_products

if TYPE_CHECKING:
    from bitnet_trainer.shared_weights import SharedWeights

_NOTHING = Capture()
_INDUCTOR: Mapping[str, Any] = MappingProxyType({"max_autotune_pointwise": True})
"""Several ways to cut up each pass that the compiler writes are tried, once a shape, and the fastest stays: a
norm of queries with RoPE then takes a third of the time (benchmarks/gpu/RESULTS.md). Sums along a token may
add up in another order where another way was faster; what was chosen is in the compiler's cache."""


class LanguageModel(nn.Module):
    """Wraps a decoder-only model: a causal LM, or a classifier of sequences.

    It holds the very modules of the model, so that an optimiser, a checkpoint or an export of the one is that
    of the other. DDP is put around this and FSDP2 into it: its forward is the whole forward pass, less the
    head.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.shared: SharedWeights | None = None
        """Weights of its layers that they gather by themselves, where `sharding.shard` had them do it."""
        self.replayed = False
        """Whether layers are CUDA graphs."""
        self._compiled: tuple[Callable[..., Any], ...] = ()
        self._backend = ""

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

    def compile_layers(self, backend: str = "inductor", *, replayed: bool = False) -> None:
        """Has each decoder layer's forward pass compiled, the first time that it is called by way of this.

        One graph serves all layers that are alike, so that it is ready after one layer's compilation, and a
        layer that does not fit into one graph is an error: a graph that breaks is slow, and nobody sees it.
        The model itself, called directly, computes as before. Source: regional compilation,
        https://docs.pytorch.org/tutorials/recipes/regional_compilation.html.

        Args:
            backend: as in torch.compile.
            replayed: whether a layer's kernels are started together, as a CUDA graph. The host, which small
                models wait for, then has little to do. What a pass makes in layers, gradients among it, is
                overwritten by the next one: each begins with `begin_pass`. Not for layers whose parameters
                move in memory (FSDP2), nor where memory is counted by tensors, as `Fitting` does: a graph's
                is none of theirs. `replay` changes it.
        """
        self._backend, self.replayed = backend, replayed
        # One for each shape of a micro batch, and for lambda below 1, at 1, and without gradients.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        options = {**_INDUCTOR, "triton.cudagraphs": replayed} if backend == "inductor" else None
        self._compiled = tuple(
            torch.compile(
                layer.forward,
                fullgraph=True,
                dynamic=False,
                backend=backend,
                options=options,
            )
            for layer in self.decoder_layers
        )

    @property
    def compiled(self) -> bool:
        """Whether `compile_layers` was called."""
        return bool(self._compiled)

    def replay(self, replayed: bool) -> None:
        """Has compiled layers replayed as CUDA graphs from here on, or no longer; what is not compiled stays.

        Where they are no longer, the graphs' memory is given back as soon as no gradient lies there, and
        everything compiled in this process is compiled anew, mostly out of the compiler's cache.
        """
        if not self.compiled or replayed == self.replayed:
            return
        if not replayed:
            # What is compiled holds its graphs. Torch forgets all that is compiled, or nothing.
            torch.compiler.reset()
        self.compile_layers(self._backend, replayed=replayed)

    def begin_pass(self) -> None:
        """Says that nothing of an earlier pass is needed, but for gradients after `keep_gradients`."""
        if self.replayed:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def keep_gradients(self) -> None:
        """Takes gradients to where no later pass overwrites them, which adds to them there."""
        for parameter in self.decoder_layers.parameters() if self.replayed else ():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()

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

        Under autocast what layers add to is in bfloat16, as in a model that is loaded in it: half the bytes
        of what every norm reads, and every layer writes.
        """
        packed: dict[str, Tensor] = {}
        hidden_states: dict[int, Tensor] = {}
        outputs: dict[tuple[int, str], Tensor] = {}
        with ExitStack() as hooks:
            hooks.enter_context(_in_dtype_of_products(self.model.get_input_embeddings()))
            hooks.enter_context(self._layers_compiled(seen_into=capture.projections))
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

    @contextmanager
    def _layers_compiled(self, seen_into: frozenset[int]) -> Iterator[None]:
        """Inside, layers compute as `compile_layers` has them, but for those `seen_into` by hooks, which a
        graph that was made without would pass by."""
        # The attribute hides the class's method; hooks of the layer itself (FSDP2's) stay around it.
        chosen = [
            (layer, compiled)
            for number, (layer, compiled) in enumerate(zip(self.decoder_layers, self._compiled, strict=False))
            if number not in seen_into
        ]
        for layer, compiled in chosen:
            layer.forward = compiled
        try:
            yield
        finally:
            for layer, _ in chosen:
                del layer.forward

    @property
    def _base(self) -> Any:
        return self.model.base_model


@contextmanager
def _in_dtype_of_products(embeddings: nn.Module) -> Iterator[None]:
    """Inside, embeddings come out so, and all that is added to them with them."""
    handle = embeddings.register_forward_hook(lambda _module, _ids, out: out.to(dtype_of_products(out)))
    try:
        yield
    finally:
        handle.remove()


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
