"""Kernels of causal attention on CUDA, and which of them is fastest for a shape: found by measuring."""

import logging
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

_aten = torch.ops.aten
_ROUNDS = 5
_AS_GOOD = 1.02
"""What is slower than the fastest by no more is as fast: the first of the candidates is taken."""


class Attended(NamedTuple):
    """What a kernel of attention gives."""

    out: Tensor
    """(B, H, S, d)."""
    lse: Tensor
    """(B, H, S) float32: the natural logarithm of the sum of exp(logit) over the keys that a query sees. No
    gradient goes through it."""


Backend = Callable[[Tensor, Tensor, Tensor, float | None], Attended]
"""Queries (B, H, S, d), keys and values (B, Hk, S, d), all in bfloat16 or float16, and the logits' scale, 1 /
sqrt(d) if none: whole rows, causal."""


def _cudnn(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Attended:
    out, lse, *_ = _aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, True, False, scale=scale
    )
    return Attended(out, lse.reshape(query.shape[:3]))


def _flash(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Attended:
    out, lse, *_ = _aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True, False, scale=scale)
    return Attended(out, lse)


def _efficient(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Attended:
    # The only one of them that does not know of heads that share a key head.
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    out, lse, *_ = _aten._scaled_dot_product_efficient_attention(
        query, key, value, None, True, 0.0, True, scale=scale
    )
    return Attended(out, lse[..., : query.shape[2]])


BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {"cuDNN": _cudnn, "flash": _flash, "efficient": _efficient}
)
"""Those behind torch's scaled_dot_product_attention, which does not hand out what they know besides: called
by name, the one that was chosen is in a compiled graph whatever is preferred where it is compiled."""


@dataclass(frozen=True)
class AttentionShape:
    """Sizes that kernels are measured at."""

    batch: int
    heads: int
    key_heads: int
    length: int
    head_dim: int

    def random(self, device: torch.device, dtype: torch.dtype, length: int | None = None) -> list[Tensor]:
        """Queries, keys and values, as the projections of a layer lay them out, and a gradient of what comes
        out. The first three want a gradient."""
        draw = torch.Generator(device).manual_seed(0)
        made = [
            torch.randn(
                self.batch, length or self.length, heads, self.head_dim, generator=draw, device=device
            )
            for heads in (self.heads, self.key_heads, self.key_heads, self.heads)
        ]
        laid_out = [each.to(dtype).transpose(1, 2) for each in made]
        return [each.requires_grad_() for each in laid_out[:3]] + laid_out[3:]


def reference(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Attended:
    """The textbook's causal attention, a logit at a time held, in the inputs' dtype, on any device."""
    groups, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    logits = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    logits = logits.masked_fill(later, -torch.inf)
    return Attended(logits.softmax(dim=-1) @ value, logits.detach().logsumexp(dim=-1))


def measure(
    shape: AttentionShape,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    backends: Mapping[str, Backend] = BACKENDS,
) -> dict[str, float]:
    """Seconds of a forward and a backward pass by backend; one that refuses the shape, or computes something
    else, is left out and a warning says why.

    It takes some tens of milliseconds, besides what libraries take to begin.
    """
    return {
        name: seconds
        for name, backend in backends.items()
        if (seconds := _measured(name, backend, shape, device, dtype)) is not None
    }


def fastest(seconds: Mapping[str, float]) -> str | None:
    """The first that is as fast as the fastest, by and large; None of none."""
    least = min(seconds.values(), default=0.0)
    return next((name for name, each in seconds.items() if each <= least * _AS_GOOD), None)


def _measured(
    name: str, backend: Backend, shape: AttentionShape, device: torch.device, dtype: torch.dtype
) -> float | None:
    try:
        if (error := _error(backend, shape, device, dtype)) > _tolerance(dtype):
            _log.warning("%s attention of %s is wrong by %.1e; it is not used", name, shape, error)
            return None
        query, key, value, gradient = shape.random(device, dtype)

        def both_passes() -> None:
            torch.autograd.grad(backend(query, key, value, None).out, (query, key, value), gradient)

        both_passes()
        kernels = replayable(both_passes, device)
        return statistics.median(_seconds(kernels, device) for _ in range(_ROUNDS))
    # What a kernel cannot do it says so; what a version of torch has not, or calls otherwise, likewise.
    except (RuntimeError, AttributeError, TypeError) as error:
        _log.warning("%s attention cannot do %s: %s", name, shape, str(error).split("\n")[0])
        return None


def _tolerance(dtype: torch.dtype) -> float:
    """Of what is about 1 in size, in units of the type's last digit."""
    return 8 * torch.finfo(dtype).eps


def _error(backend: Backend, shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> float:
    """The largest error of anything that a backend computes, in shares of its size, over short rows."""

    def passes(attend: Backend, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        query, key, value, gradient = inputs
        attended = attend(query, key, value, None)
        return (*attended, *torch.autograd.grad(attended.out, (query, key, value), gradient))

    short = shape.random(device, dtype, length=min(shape.length, 128))
    exact = [each.detach().double().requires_grad_(each.requires_grad) for each in short]
    found, expected = passes(backend, short), passes(reference, exact)
    # NaN compares as no error; as this it is the largest.
    errors = [
        ((one.double() - other).norm() / other.norm()).nan_to_num(nan=torch.inf)
        for one, other in zip(found, expected, strict=True)
    ]
    return torch.stack(errors).amax().item()


def replayable(action: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Its kernels alone, on CUDA: a kernel that is shorter than its launch would be measured by the host."""
    if device.type != "cuda":
        return action
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on talking to the device, as NCCL's does.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        action()
    return graph.replay


def _seconds(action: Callable[[], None], device: torch.device) -> float:
    begin, end = (torch.Event(device, enable_timing=True) for _ in range(2))
    begin.record()
    action()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000
