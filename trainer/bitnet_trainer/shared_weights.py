"""BitLinear weights of which each rank holds some rows: packed codes are gathered, gradients are reduced.

FSDP2 gathers every weight as it is, for each forward and each backward pass. A BitLinear that is wholly
quantised needs codes and a scale, which no pass changes: once an optimiser step, 2 bits a weight.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from bitnet_trainer.optim.shards import own_part
from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.codes import quantize_weights
from bitnet_trainer.quantization.int8_training import PackedCodes
from bitnet_trainer.quantization.packing import pack_codes
from bitnet_trainer.triton_kernels import compiled_for


class SharedWeights:
    """The weights of all BitLinears (AbsMean) in some decoder layers, cut along their rows.

    Each becomes a DTensor such as FSDP2 makes, which has to leave it alone. A layer's forward pass gathers
    what its BitLinears compute with. At lambda 1 that is packed codes, a quarter of a byte a weight, which
    stay for the backward pass, and inside `codes_kept` for every pass. Before that it is the weights, while
    the layer before computes; they go when the layer is done, as no gradient needs them. In each backward
    pass a layer's gradients are averaged over the ranks, while the layer before it makes its own.
    """

    def __init__(self, layers: Iterable[nn.Module], mesh: DeviceMesh) -> None:
        """Cuts them, in place; every rank calls it.

        Args:
            layers: on their device, in the order in which they compute; the same on all ranks. One without
                such a BitLinear is left alone.
            mesh: the ranks, in one dimension.
        """
        self._mesh, self._gradients = mesh, _Gradients(mesh)
        self._layers: list[_Layer] = []
        self._kept: dict[_Layer, _Codes] = {}
        self._ahead: dict[_Layer, _Gathering] = {}
        for module in layers:
            # Not of a subclass, which need not have a weight.
            parts = [
                part for part in module.modules() if type(part) is BitLinear and part.scheme == "AbsMean"
            ]
            if parts:
                layer = _Layer(parts, mesh)
                module.register_forward_pre_hook(partial(self._begin, layer))
                module.register_forward_hook(layer.end, always_call=True)
                self._layers.append(layer)
        self._next = dict(zip(self._layers, self._layers[1:], strict=False))

    @property
    def parameters(self) -> set[nn.Parameter]:
        """The weights."""
        return {weight for layer in self._layers for weight in layer.weights}

    @contextmanager
    def codes_kept(self) -> Iterator[None]:
        """Inside, all forward passes take the codes that the weights have at the beginning.

        Nothing may change a weight inside. Every rank enters it; it does nothing where lambda is below 1.
        """
        quantized = [layer for layer in self._layers if layer.has_codes]
        self._kept = self._codes(quantized) if quantized else {}
        try:
            yield
        finally:
            self._kept = {}

    def _begin(self, layer: "_Layer", *_: object) -> None:
        """Before a layer's forward pass."""
        kept: Sequence[PackedCodes | None]
        if layer.has_codes:
            kept = (self._kept.get(layer) or self._codes([layer])[layer]).wholes()
            wholes = layer.without_memory()
        else:
            kept, wholes = [None] * len(layer.parts), self._weights(layer)
        stand_ins = _StandIns.apply(self._gradients, layer.weights, wholes, *layer.weights)
        for part, codes, whole in zip(layer.parts, kept, stand_ins, strict=True):
            part.kept, part.whole = codes, whole

    @torch.no_grad()
    def _codes(self, layers: Sequence["_Layer"]) -> dict["_Layer", "_Codes"]:
        """Of their weights as they are; what is gathered is waited for where it is used."""
        owns = {layer: layer.own() for layer in layers}
        # In float64, so that a mean is the same however the rows are spread.
        sums = torch.stack(
            torch._foreach_norm([own for part in owns.values() for own in part], 1, torch.float64)
        )
        dist.all_reduce(sums, group=self._mesh.get_group())
        means = sums / torch.cat([layer.sizes for layer in layers])
        of_layers = torch.split(means, [len(own) for own in owns.values()])
        return {
            layer: _Codes(own, mean.unbind(), layer.shapes, self._mesh)
            for (layer, own), mean in zip(owns.items(), of_layers, strict=True)
        }

    @torch.no_grad()
    def _weights(self, layer: "_Layer") -> list[Tensor]:
        """A layer's weights, whole; those of the next one are on their way then."""
        if layer is self._layers[0]:
            self._ahead = {}  # a forward pass that failed left it
        here = self._ahead.pop(layer, None) or _Gathering(layer.own(), layer.shapes, self._mesh)
        wholes = here.wholes()
        if (following := self._next.get(layer)) is not None:
            self._ahead[following] = _Gathering(following.own(), following.shapes, self._mesh)
        return wholes


class _Layer:
    """The weights of a decoder layer, which go together."""

    def __init__(self, parts: Sequence[BitLinear], mesh: DeviceMesh) -> None:
        self.parts = parts
        self.shapes = [part.weight.shape for part in parts]
        self.weights: list[nn.Parameter] = []
        for part in parts:
            cut = distribute_tensor(part.weight.detach(), mesh, [Shard(0)], src_data_rank=None)
            # A copy, or the whole would stay for its part's sake.
            own = nn.Parameter(cut.clone(), requires_grad=part.weight.requires_grad)
            part.weight = own
            self.weights.append(own)
        counts = [shape.numel() for shape in self.shapes]
        self.sizes = torch.tensor(counts, dtype=torch.float64, device=self.weights[0].device)

    @property
    def has_codes(self) -> bool:
        """Whether all that it needs is codes; a model's BitLinears have one lambda."""
        return self.parts[0].lam.whole

    def own(self) -> list[Tensor]:
        """This rank's rows of each weight."""
        return [own_part(weight).detach() for weight in self.weights]

    def without_memory(self) -> list[Tensor]:
        """Tensors as large as the whole weights that hold nothing to be read; gradients come to them."""
        return [
            torch.empty_strided(weight.shape, (0, 0), dtype=weight.dtype, device=weight.device)
            for weight in self.weights
        ]

    def end(self, *_: object) -> None:
        """After a layer's forward pass."""
        for part in self.parts:
            part.kept = part.whole = None


class _Gathering:
    """Matrices cut along their rows, on their way to every rank."""

    def __init__(self, own: Sequence[Tensor], shapes: Sequence[torch.Size], mesh: DeviceMesh) -> None:
        """Of this rank's rows of each, all of one dtype; `shapes` are those of the whole matrices."""
        self._shapes = shapes
        sent = torch.cat(
            [_padded(part, _rows(shape, mesh)).flatten() for part, shape in zip(own, shapes, strict=True)]
        )
        self._received = sent.new_empty(mesh.size(), len(sent))
        work = dist.all_gather_into_tensor(
            self._received.view(-1), sent, group=mesh.get_group(), async_op=True
        )
        assert work is not None  # this rank is in the group
        self._work, self._mesh = work, mesh

    def wholes(self) -> list[Tensor]:
        """The matrices. The host does not wait for them where they are on a GPU."""
        self._work.wait()
        parts = torch.split(self._received, _numbers(self._shapes, self._mesh), dim=1)
        return [
            part.reshape(-1, shape[1])[: shape[0]] for part, shape in zip(parts, self._shapes, strict=True)
        ]


class _Codes:
    """A layer's codes, on their way to every rank or there."""

    def __init__(
        self, own: Sequence[Tensor], means: Sequence[Tensor], shapes: Sequence[torch.Size], mesh: DeviceMesh
    ) -> None:
        """Of this rank's rows, and the means of the absolute whole weights."""
        packed, scales = compiled_for(_packed, own[0].device)(own, means)
        of_bytes = [torch.Size((shape[0], part.shape[1])) for shape, part in zip(shapes, packed, strict=True)]
        self._scales: list[Tensor] = scales
        self._on_their_way: _Gathering | None = _Gathering(packed, of_bytes, mesh)
        self._wholes: list[PackedCodes] = []

    def wholes(self) -> list[PackedCodes]:
        """Those of the whole weights."""
        if self._on_their_way is not None:
            pairs = zip(self._on_their_way.wholes(), self._scales, strict=True)
            self._wholes = [PackedCodes(*pair) for pair in pairs]
            self._on_their_way = None
        return self._wholes


def _packed(own: Sequence[Tensor], means: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Codes (rows, ceil(in / 4)) of parts, and the scales () of the matrices that they are parts of."""
    quantized = [quantize_weights(part, mean) for part, mean in zip(own, means, strict=True)]
    # Compiled, quantising and packing are one pass, and a kernel of its own would be another.
    packed = [pack_codes(codes, kernel=False) for codes, _ in quantized]
    return packed, [scale.float() for _, scale in quantized]


class _StandIns(torch.autograd.Function):
    """What stands for a layer's weights in a forward pass; its gradients go to `_Gradients`."""

    @staticmethod
    def forward(
        ctx: Any,
        gradients: "_Gradients",
        weights: Sequence[nn.Parameter],
        wholes: Sequence[Tensor],
        *_: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.gradients, ctx.weights = gradients, weights
        ctx.set_materialize_grads(False)
        pairs = zip(wholes, weights, strict=True)
        ctx.mark_non_differentiable(*(whole for whole, weight in pairs if not weight.requires_grad))
        return tuple(wholes)

    @staticmethod
    def backward(ctx: Any, *found: Tensor | None) -> tuple[None, ...]:
        pairs = [
            (weight, gradient)
            for weight, gradient in zip(ctx.weights, found, strict=True)
            if weight.requires_grad and gradient is not None
        ]
        if pairs:
            ctx.gradients.take(*zip(*pairs, strict=True))
        return (None,) * (3 + len(found))


class _Gradients:
    """Whole gradients, averaged over the ranks and added to those of this rank's rows."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh
        self._pending: tuple[dist.Work, Tensor, Sequence[nn.Parameter]] | None = None

    @torch.no_grad()
    def take(self, weights: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
        """Sends a layer's, when those sent before have come; called in a backward pass, whose end waits for
        all."""
        self._settle()
        world = self._mesh.size()
        sent = torch.cat(
            [_padded(each, world * _rows(each.shape, self._mesh)).reshape(world, -1) for each in gradients],
            dim=1,
        )
        reduced = sent.new_empty(sent.shape[1])
        # The sum, since not every Gloo has means.
        work = dist.reduce_scatter_tensor(reduced, sent.view(-1), group=self._mesh.get_group(), async_op=True)
        assert work is not None  # this rank is in the group
        self._pending = work, reduced, weights
        Variable._execution_engine.queue_callback(self._settle)

    @torch.no_grad()
    def _settle(self) -> None:
        """Adds what is on its way, if anything is."""
        if self._pending is None:
            return
        (work, reduced, weights), self._pending = self._pending, None
        work.wait()
        reduced /= self._mesh.size()
        parts = torch.split(reduced, _numbers([weight.shape for weight in weights], self._mesh))
        for weight, part in zip(weights, parts, strict=True):
            rows = part.view(-1, weight.shape[1])[: len(own_part(weight))]
            if weight.grad is None:
                weight.grad = DTensor.from_local(
                    rows, self._mesh, [Shard(0)], shape=weight.shape, stride=weight.stride()
                )
            else:
                own_part(weight.grad).add_(rows)


def _rows(shape: torch.Size, mesh: DeviceMesh) -> int:
    """The most rows of a matrix that a rank holds; the last ranks may have fewer, or none."""
    return -(-shape[0] // mesh.size())


def _numbers(shapes: Iterable[torch.Size], mesh: DeviceMesh) -> list[int]:
    """In so many rows of each."""
    return [_rows(shape, mesh) * shape[1] for shape in shapes]


def _padded(matrix: Tensor, rows: int) -> Tensor:
    return matrix if len(matrix) == rows else F.pad(matrix, (0, 0, 0, rows - len(matrix)))
