"""What is measured: the trainer's own step, and what else one could train the same shape with."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from shapes import Shape
from torch import Tensor, nn
from trainer_step import TrainerStep, alone
from transformers import PreTrainedModel

from bitnet_crds.spec import Quantization
from bitnet_trainer.batch import Rows
from bitnet_trainer.models.attention import prefer
from bitnet_trainer.models.attention_backends import AttentionShape, fastest
from bitnet_trainer.models.attention_backends import measure as measure_attention
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.presets import build_preset
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.step import autocast

RATE = 1e-4
"""Learning rate of all."""
SHORTEST, LONGEST = 256, 512
"""Tokens of a document, both included, where rows hold several; the last one of a row is what is left."""


@dataclass
class Trained:
    """A model with its optimiser, and what takes a step of it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    take: Callable[[], Tensor]
    """Takes one step and gives the loss, 0-dim, on the device."""
    compiled: bool = False
    """Whether its modules are in compiled graphs, which nothing may be put around."""
    replayed: bool = False
    """Whether these are CUDA graphs, which hold memory that is in no tensor."""


@dataclass
class Workload:
    """What every case of a table trains."""

    name: str
    shape: Shape
    tokens: Tensor
    """(B, S + 1) int64 on the CPU, uniform over the vocabulary."""
    device: torch.device
    passes: int = 1
    """Micro batches that a step is made of."""
    _unquantised: PreTrainedModel | None = field(default=None, init=False)
    _optimizer: torch.optim.Optimizer | None = field(default=None, init=False)

    @property
    def batch(self) -> int:
        """B."""
        return self.tokens.shape[0]

    @property
    def sequence(self) -> int:
        """S."""
        return self.tokens.shape[1] - 1

    def unquantised(self) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
        """One model for all cases that quantise nothing: they differ in how a step of it is computed."""
        if self._unquantised is None or self._optimizer is None:
            self._unquantised = self.shape.build(self.device)
            self._optimizer = _adamw(self._unquantised)
        return self._unquantised, self._optimizer


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)


# --- ours


def ours(
    work: Workload,
    *,
    preset: bool = False,
    compiled: bool = True,
    replayed: bool = True,
    haar: bool = False,
    documents: bool = False,
) -> Trained:
    """The trainer's step as a run without a teacher takes it, on one GPU: lambda, gradient clipping and the
    guard included.

    `preset` takes our own architecture of that size, `haar` Haar weights, and `documents` rows of several
    documents, none of which sees another. Not `compiled`, layers run operation by operation; not `replayed`,
    each kernel of a compiled layer is started by itself, as where graphs have no room.
    """
    if preset:
        with work.device:
            model: PreTrainedModel = build_preset(f"BitNetLlama-{work.name}", work.shape.vocabulary)
    else:
        model = work.shape.build(work.device)
    convert(model, Quantization(weights="Haar" if haar else "AbsMean"))
    student = LanguageModel(model.to(work.device)).train()
    on_cuda = work.device.type == "cuda"
    if on_cuda:
        rows = work.batch // work.passes
        shape = AttentionShape(rows, work.shape.heads, student.key_heads, work.sequence, student.head_dim)
        prefer(model, fastest(measure_attention(shape, work.device)))
    replayed = replayed and compiled and on_cuda
    if compiled:
        student.compile_layers(replayed=replayed)
    trainer = TrainerStep.of(student, alone(work.device), rate=RATE)
    parts = work.tokens[:, :-1].contiguous().chunk(work.passes)
    asked = trainer.asked([rows_of_documents(part) if documents else Rows.of(part) for part in parts])
    return Trained(student, trainer.stepper.optimizer, lambda: trainer.take(asked), compiled, replayed)


def rows_of_documents(tokens: Tensor) -> Rows:
    """Rows (B, S) cut into documents, the same each time: token 0 ends one, and is nowhere else."""
    draw = torch.Generator().manual_seed(0)
    cut = tokens.clamp(min=1)
    for row in cut:
        end = 0
        while (end := end + int(torch.randint(SHORTEST, LONGEST + 1, (), generator=draw))) < len(row):
            row[end - 1] = 0
    return Rows.of_documents(cut, end=0)


# --- peers

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Head, hidden states (B, S, D), next tokens (B, S) -> mean loss."""


def _plain(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = head(hidden).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _liger() -> Loss:
    """Liger's head and cross-entropy in one, over chunks of tokens."""
    fused = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()

    def loss(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
        weight = head.get_parameter("weight").to(torch.bfloat16)
        value: Tensor = fused(weight, hidden.flatten(0, 1).to(torch.bfloat16), targets.flatten())
        return value

    return loss


def _peer(
    work: Workload,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    *,
    compiled: bool,
    loss: Loss,
) -> Trained:
    inputs, targets = (
        [each.contiguous() for each in part.to(work.device).chunk(work.passes)]
        for part in (work.tokens[:, :-1], work.tokens[:, 1:])
    )
    base = model.base_model
    # Called so, and not compiled in place: other cases train the same model another way.
    decoder = torch.compile(base) if compiled else base

    def take() -> Tensor:
        total = torch.zeros((), device=work.device)
        for some, following in zip(inputs, targets, strict=True):
            with autocast(work.device):
                hidden = decoder(input_ids=some, use_cache=False).last_hidden_state
                value = loss(model.get_output_embeddings(), hidden, following) / work.passes
            value.backward()
            total += value.detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return Trained(model, optimizer, take, compiled)


def bf16(work: Workload, *, compiled: bool, layers: bool = False, loss: str = "plain") -> Trained:
    """The shape unquantised: float32 weights, products in bfloat16.

    `compiled` makes one graph of the decoder. `layers` compiles each layer by itself: transformers then finds
    that no mask is needed, which it does not inside a graph, and attention is told that it is causal.
    """
    losses: Mapping[str, Callable[[], Loss]] = {
        "plain": lambda: _plain,
        "compiled": lambda: torch.compile(_plain),
        "liger": _liger,
    }
    made = losses[loss]()
    if not layers:
        return _peer(work, *work.unquantised(), compiled=compiled, loss=made)
    # Compiled in place, so that it is a model of its own.
    model = work.shape.build(work.device)
    for layer in LanguageModel(model).decoder_layers:
        layer.compile()
    trained = _peer(work, model, _adamw(model), compiled=False, loss=made)
    return replace(trained, compiled=True)


class FakeQuantLinear(nn.Linear):
    """The textbook's quantised linear: weights and inputs rounded in each call, in plain operations."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        mean = self.weight.abs().mean().clamp(min=1e-5)
        ternary = (self.weight / mean).round().clamp(-1, 1) * mean
        unit = input.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5) / 127
        rounded = (input / unit).round().clamp(-128, 127) * unit
        return F.linear(
            input + (rounded - input).detach(), self.weight + (ternary - self.weight).detach(), self.bias
        )


def textbook(work: Workload, *, compiled: bool) -> Trained:
    """Fake quantisation as one writes it in ten lines."""
    model = work.shape.build(work.device)
    for module in model.base_model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FakeQuantLinear
    return _peer(work, model, _adamw(model), compiled=compiled, loss=_liger())


def torchao(work: Workload) -> Trained:
    """torchao's BitNet training: int8 products in the forward pass."""
    quantized_training = importlib.import_module("torchao.prototype.quantized_training")
    quantize = importlib.import_module("torchao").quantize_
    model = work.shape.build(work.device)
    quantize(model.base_model.layers, quantized_training.bitnet_training())
    return _peer(work, model, _adamw(model), compiled=True, loss=_liger())


def onebitllms(work: Workload) -> Trained:
    """onebitllms: its own Triton kernels round; products in bfloat16."""
    convert_theirs = importlib.import_module("onebitllms").replace_linear_with_bitnet_linear
    model = convert_theirs(work.shape.build(work.device)).to(work.device)
    return _peer(work, model, _adamw(model), compiled=False, loss=_liger())


Build = Callable[[Workload], Trained]

CASES: Mapping[str, Build] = MappingProxyType(
    {
        "ours": ours,
        "ours, BitNetLlama preset": partial(ours, preset=True),
        "ours, eager": partial(ours, compiled=False),
        "ours, documents": partial(ours, documents=True),
        "ours, Haar": partial(ours, haar=True),
        "ours, Haar, eager": partial(ours, haar=True, compiled=False),
        "ours, not replayed": partial(ours, replayed=False),
        "bf16, eager, plain CE": partial(bf16, compiled=False),
        "bf16, compiled, plain CE": partial(bf16, compiled=True),
        "bf16, compiled, CE compiled": partial(bf16, compiled=True, loss="compiled"),
        "bf16, layers compiled, CE compiled": partial(bf16, compiled=False, layers=True, loss="compiled"),
        "bf16, layers compiled, Liger CE": partial(bf16, compiled=False, layers=True, loss="liger"),
        "bf16, eager, Liger CE": partial(bf16, compiled=False, loss="liger"),
        "bf16, compiled, Liger CE": partial(bf16, compiled=True, loss="liger"),
        "textbook fake-quant, eager, Liger CE": partial(textbook, compiled=False),
        "textbook fake-quant, compiled, Liger CE": partial(textbook, compiled=True),
        "torchao bitnet_training, compiled, Liger CE": torchao,
        "onebitllms, eager, Liger CE": onebitllms,
    }
)
"""All that can be measured. CE: cross-entropy."""
