"""Sharding by FSDP2: each rank holds a part of every parameter, and gathers a layer to compute with it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import PreTrainedModel

from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.shared_weights import SharedWeights


def shard(student: LanguageModel, ranks: Ranks, *, packed: bool = True) -> "WholeModel":
    """Cuts every parameter of the student along its rows, one part a rank, in place; every rank calls it.

    Returns what gathers the model to be written. Where not `packed`, weights of BitLinears (AbsMean) are
    gathered as all others are, and not as `SharedWeights` does: that sends a sixth of the bytes, and has the
    host do more. Between two GPUs of one machine it was the slower one (benchmarks/gpu/RESULTS.md).

    Parameters become DTensors, and gradients and moments with them. Do it after the conversion, and before an
    optimiser takes the parameters.

    What else is in a decoder layer is gathered for its forward pass and again for its backward one.
    Embedding, last norm and head are one group, because they may be tied and the head is applied outside the
    forward pass, chunk by chunk: they stay whole from the forward pass to the end of the backward one.
    Gradients are averaged over the ranks after each micro batch, and then added up: the other way round, they
    would be held whole. What a BitLinear multiplies by stays from its forward pass to its backward one, and
    whole: on CUDA at lambda 1 its codes, packed where it gathers them, else the weights quantised and
    blended, 4 bytes each, 2 under autocast. Source: torch.distributed.fsdp.fully_shard.
    """
    whole = WholeModel(student.model, without_weights(student.model))
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    student.shared = SharedWeights(student.decoder_layers, mesh) if packed else None
    apart = student.shared.parameters if student.shared is not None else set()
    for layer in student.decoder_layers:
        fully_shard(layer, mesh=mesh, ignored_params=apart)
    root = fully_shard(student, mesh=mesh, ignored_params=apart)
    if ranks.device.type == "cpu":
        for module in student.modules():
            if isinstance(module, FSDPModule):
                # Not every Gloo has means.
                module.set_force_sum_reduction_for_comms(True)
    # Which module is the root is settled by the first forward pass, and an evaluation may come before one.
    with torch.no_grad():
        student(torch.zeros(1, 1, dtype=torch.int64, device=ranks.device))
    root.reshard()
    return whole


@contextmanager
def called_directly(student: LanguageModel) -> Iterator[None]:
    """Inside, `student.model` may be called itself, forward and backward, and its ends are whole.

    Sharded or not. Every rank has to make the same number of passes, since each gathers layers.
    """
    if not isinstance(student, FSDPModule):
        yield
        return
    student.unshard()
    student.set_reshard_after_backward(False, recurse=False)
    try:
        yield
    finally:
        student.set_reshard_after_backward(True, recurse=False)
        student.reshard()


class WholeModel:
    """The model as the first rank writes it to files: whole, in its own classes."""

    def __init__(self, model: PreTrainedModel, bare: PreTrainedModel | None = None) -> None:
        """Of a model as it is, or of one that is sharded, with what `without_weights` made of it before."""
        self._model, self._bare = model, bare

    @property
    def outline(self) -> PreTrainedModel:
        """The model in its own classes, whatever its parameters hold. Training changes nothing else of it, so
        that another thread may read it."""
        return self._model if self._bare is None else self._bare

    def on_first(self, ranks: Ranks) -> PreTrainedModel | None:
        """The model on the first rank, None on the others; every rank calls it. Sharded, it is gathered into
        the CPU's memory."""
        if self._bare is None:
            return self._model if ranks.first else None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self._model, options=options)
        if not ranks.first:
            return None
        whole = copy.deepcopy(self._bare)
        whole.load_state_dict(weights, assign=True)
        whole.tie_weights()
        return whole


def without_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy on the CPU whose parameters take no memory, tied ones tied; its buffers are the model's."""
    empty = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in model.parameters()
    }
    bare = copy.deepcopy(model, empty)
    for module in bare.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.cpu())
    return bare
