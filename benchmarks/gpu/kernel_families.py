"""Where a step's time goes: its kernels by family, told by the module that launched each."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from cases import Trained
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from bitnet_trainer import step as trainer_step
from bitnet_trainer.models.gated import GatedMLP
from bitnet_trainer.objectives import cross_entropy
from bitnet_trainer.quantization.bitlinear import BitLinear

FAMILIES = (
    "matmul",
    "int8 product",
    "quantise activations",
    "quantise weights",
    "norm",
    "attention",
    "loss + head",
    "optimiser",
    "copies",
    "fused by the compiler",
    "other",
)
"""Int8 product, quantise activations (with gates, norms by head, rotary positions) and weights: our kernels.
Norm: RMSNorms. Other: residual sums, embeddings. Copies: those of no other family. Fused by the compiler:
norms, quantisation and all of other, where a graph of them was compiled."""

_MARK = "family: "
_MARKS = (_MARK, "Optimizer.", "##", "Torch-Compiled")
"""How spans begin that are no kernels: ours, and those that torch marks by itself."""
_PRODUCTS = re.compile(r"^aten::(mm|addmm|bmm|_int_mm|matmul|linear)$")
_ATTENTION = re.compile(r"scaled_dot_product|flash_attention|efficient_attention|cudnn_attention")
_LOSS = re.compile(r"cross_entropy|nll_loss|log_softmax|Liger", re.IGNORECASE)
_KERNELS = (
    ("int8 product", re.compile(r"^product_kernel$")),
    ("quantise activations", re.compile(r"^(token|codes|gradients|turned|turned_back)_kernel$")),
    ("quantise weights", re.compile(r"^weight_(sums|scales|codes)$")),
    ("loss + head", re.compile(r"^triton_.*(nll_loss|log_softmax)")),
    ("fused by the compiler", re.compile(r"^triton_(poi|red|per|tem|spl)")),
    ("attention", re.compile(r"flash|fmha|sdpa|attention|cudnn::fusion", re.IGNORECASE)),
    ("loss + head", re.compile(r"cross_entropy|nll_loss|softmax", re.IGNORECASE)),
    ("matmul", re.compile(r"nvjet|gemm|cutlass|splitk|int8_mm", re.IGNORECASE)),
    ("optimiser", re.compile(r"adam|multi_tensor", re.IGNORECASE)),
    ("copies", re.compile(r"memcpy|memset|copy", re.IGNORECASE)),
)
"""By name, of kernels whose operation says nothing: those of compiled regions."""


@dataclass
class Profile:
    """Where a step's time went, in seconds: of kernels on CUDA, of operations on the CPU."""

    families: dict[str, float]
    """In the order of FAMILIES."""
    kernels: dict[tuple[str, str], float]
    """By family and name, longest first."""


def profiled(trained: Trained, vocabulary: int, device: torch.device) -> Profile:
    """Profiles one step; a product over `vocabulary` is the head's."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with _marked(trained):
        trained.take()
        with profile(activities=activities, acc_events=True, record_shapes=True) as profiler:
            trained.take()
            if device.type == "cuda":
                torch.cuda.synchronize()
    times = _sorted_out(list(profiler.events() or []), vocabulary, on_device=device.type == "cuda")
    families = dict.fromkeys(FAMILIES, 0.0)
    for (family, _), time in times.items():
        families[family] += time / 1e6
    return Profile(families, {key: time / 1e6 for key, time in times.most_common()})


@contextmanager
def _marked(trained: Trained) -> Iterator[None]:
    """Inside, what the parts of a model run is marked in a profile, as far as it is not compiled."""
    with ExitStack() as marks:

        def mark(owner: object, name: str, family: str) -> None:
            marks.enter_context(patch.object(owner, name, _inside(family, getattr(owner, name))))

        for module in () if trained.compiled else trained.model.modules():
            if isinstance(module, BitLinear):
                mark(module, "effective_weight", "quantise weights")
            if isinstance(module, BitLinear | GatedMLP):
                mark(module, "forward", "quantise activations")
            elif type(module).__name__.endswith("RMSNorm"):
                mark(module, "forward", "norm")
        mark(cross_entropy, "sum_over_tokens", "loss + head")
        mark(trainer_step, "clip_in_update", "optimiser")
        yield


def _inside(family: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any, **named: Any) -> Any:
        with record_function(_MARK + family):
            return function(*arguments, **named)

    return called


def _sorted_out(events: list[Any], vocabulary: int, *, on_device: bool) -> Counter[tuple[str, str]]:
    """Microseconds by family and name. A gradient's belong where its operation does."""
    forward: dict[tuple[int, int], Any] = {}
    for event in events:
        if event.sequence_nr >= 0 and not _is_backward(event):
            # The outermost of one number is the operation that a backward node was made for.
            forward.setdefault((event.thread, event.sequence_nr), event)
    times: Counter[tuple[str, str]] = Counter()
    left: Counter[str] = Counter()
    for event in events:
        if event.device_type != DeviceType.CPU:
            if on_device and not _is_mark(event):
                left[event.name] += event.time_range.elapsed_us()
            continue
        if on_device:
            for kernel in event.kernels:
                if not kernel.name.startswith(_MARKS):
                    times[_family(event, kernel.name, forward, vocabulary), kernel.name] += kernel.duration
                    left[kernel.name] -= kernel.duration
        else:
            times[_family(event, "", forward, vocabulary), event.name] += event.self_cpu_time_total
    for name, duration in left.items():
        # Launched by no operation that the profiler knows.
        times[_by_name(name), name] += max(duration, 0)
    return times


def _is_mark(event: Any) -> bool:
    return bool(getattr(event, "is_user_annotation", False)) or event.name.startswith(_MARKS)


def _is_backward(event: Any) -> bool:
    return "autograd::engine" in event.name or event.name.endswith(("Backward0", "Backward1"))


def _family(event: Any, kernel: str, forward: dict[tuple[int, int], Any], vocabulary: int) -> str:
    """Of an operation: the mark around it, or around the forward operation whose gradient it computes."""
    own = list(_with_parents(event))
    chain = list(own)
    for each in own:
        if _is_backward(each) and (made_for := forward.get((each.fwd_thread, each.sequence_nr))):
            chain += _with_parents(made_for)
            break
    names = [each.name for each in chain]
    marks = [name.removeprefix(_MARK) for name in names if name.startswith(_MARK)]
    if "loss + head" in marks:
        return "loss + head"
    if any(name.startswith("Optimizer.") for name in names):
        return "optimiser"
    if any(_ATTENTION.search(name) for name in names):
        return "attention"
    products = [each for each in own if _PRODUCTS.match(each.name)]
    if any(vocabulary in shape for each in products for shape in each.input_shapes or ()):
        return "loss + head"
    if products:
        return "matmul" if _by_name(kernel) != "copies" else "copies"
    if any(_LOSS.search(each.name) for each in chain):
        return "loss + head"
    if marks:
        return marks[0]
    return _by_name(kernel)


def _with_parents(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _by_name(kernel: str) -> str:
    return next((family for family, pattern in _KERNELS if pattern.search(kernel)), "other")
