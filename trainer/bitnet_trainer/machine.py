"""What steps cost: model FLOPs utilisation, time of a step, memory. Nothing here waits for a device."""

import re
import resource
import sys
from collections.abc import Collection
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from bitnet_crds.plan import Plan
from bitnet_crds.protocol import MachineProgress
from bitnet_trainer.ranks import Ranks

_PEAKS = (
    (r"H100 80GB HBM3|H100 SXM.*", 989.4e12),
    (r"H200", 989.4e12),
    (r"A100-(SXM4|PCIE)-\d+GB|A100 80GB PCIe", 312e12),
    (r"L4", 121e12),
)
"""Dense bfloat16 FLOPs a second by the name that CUDA gives a device, less `NVIDIA`. From NVIDIA's data
sheets, whose figures for H100, H200 and L4 are with sparsity: twice these."""
_MASKED = frozenset({"maskedDiffusion"})
"""Objectives with a forward pass of their own, over masked text; all others share the one over clean text."""


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 FLOPs a second of a GPU; None of one that is not known, rather than a wrong number."""
    bare = device_name.removeprefix("NVIDIA ")
    return next((peak for pattern, peak in _PEAKS if re.fullmatch(pattern, bare)), None)


def flops_a_token(
    *, trained: int, frozen: int, layers: int, attention_width: int, sequence_length: int
) -> float:
    """FLOPs of one forward and backward pass for a token.

    `6 N + 12 L W T`: two a weight forward, two for the gradient of its input and two for its own, which a
    frozen weight does without; the logits and their use over T positions, W being heads times channels,
    counted in full though half of them are masked. Source: arXiv 2204.02311, appendix B.

    Args:
        trained: weights in matrices, head included, embeddings that are only looked up in not.
        frozen: such weights without a gradient.
    """
    return 6 * trained + 4 * frozen + 12 * layers * attention_width * sequence_length


@dataclass(frozen=True)
class Machine:
    """Of one rank, and what a token costs all of them."""

    device: torch.device
    tokens_per_step: int
    flops_a_token: float
    peak_flops: float | None
    """FLOPs a second of all ranks together, where the GPU is known."""

    @classmethod
    def of(cls, model: PreTrainedModel, ranks: Ranks, plan: Plan) -> "Machine":
        """Of a model that is trained by these ranks, sharded or not."""
        config = model.config
        heads = config.num_attention_heads
        trained, frozen = multiplied_weights(model)
        peak = None
        if ranks.device.type == "cuda":
            peak = peak_flops(torch.cuda.get_device_name(ranks.device))
        return cls(
            ranks.device,
            plan.tokens_per_step,
            flops_a_token(
                trained=trained,
                frozen=frozen,
                layers=config.num_hidden_layers,
                attention_width=heads * (getattr(config, "head_dim", None) or config.hidden_size // heads),
                sequence_length=plan.sequence_length,
            ),
            None if peak is None else peak * ranks.world,
        )

    def figures(self, tokens_per_second: float | None, objectives: Collection[str]) -> MachineProgress:
        """What there is to tell now. Weighing `objectives` takes one pass over the text, or two.

        The teacher's passes count for nothing: utilisation is of the student's own arithmetic.
        """
        passes = len(_MASKED & set(objectives)) + bool(set(objectives) - _MASKED)
        utilization = None
        if tokens_per_second is not None and self.peak_flops is not None:
            utilization = tokens_per_second * passes * self.flops_a_token / self.peak_flops
        on_device = torch.cuda.memory_stats(self.device) if self.device.type == "cuda" else {}
        return MachineProgress(
            step_seconds=None if tokens_per_second is None else self.tokens_per_step / tokens_per_second,
            model_flops_utilization=utilization,
            device_peak_bytes=on_device.get("allocated_bytes.all.peak"),
            device_reserved_bytes=on_device.get("reserved_bytes.all.current"),
            host_peak_bytes=_host_peak(),
        )


def multiplied_weights(model: PreTrainedModel) -> tuple[int, int]:
    """How many weights each token is multiplied with, trained and frozen: all of the model's matrices, less
    an embedding that is no head too."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tied = head is not None and head.weight is embedding.weight
    weights = [p for p in model.parameters() if p.ndim == 2 and (tied or p is not embedding.weight)]
    trained = sum(p.numel() for p in weights if p.requires_grad)
    return trained, sum(p.numel() for p in weights) - trained


def _host_peak() -> int:
    # In KiB, but in bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
