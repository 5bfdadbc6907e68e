"""AdamW over a model's parameters, grouped by role."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bitnet_trainer.optim.roles import parameter_group, parameters_by_role
from bitnet_trainer.optim.shards import own_part
from bitnet_trainer.triton_kernels import picked, suited

EPSILON = 1e-8
"""Added to the root of the second moment, before the first is divided by it."""


def build_adamw(model: nn.Module, *, learning_rate: float, weight_decay: float) -> "FusedAdamW":
    """AdamW over everything in `model` that is trained.

    `learning_rate` is the peak, and nothing moves until `set_learning_rate` gives a share of it.
    """
    return fused_adamw(
        [
            parameter_group(role, parameters, peak=learning_rate, weight_decay=weight_decay)
            for role, parameters in parameters_by_role(model).items()
        ]
    )


def fused_adamw(groups: list[dict[str, Any]]) -> "FusedAdamW":
    """AdamW (arXiv 1711.05101) with betas 0.9 and 0.95.

    The fused implementation is asked for because it alone can leave a step out on the device: where its
    `found_inf` is 1, neither weights nor moments nor step counts change.
    """
    return FusedAdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=EPSILON, fused=True)


class FusedAdamW(torch.optim.AdamW):
    """torch's fused AdamW, by kernels of ours where they suit: torch's writes divided gradients back.

    State, groups and what a step does are torch's. Where a parameter, its gradient or its state is not as
    kernels take it, its step is torch's own, and its gradient is then left divided by `grad_scale`.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None
    kernel: bool | None = None
    """Whether Triton is used; None picks by device."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Updates every parameter that has a gradient. No closure is evaluated; DCP passes none, by name."""
        taken: list[Tensor] = []
        left = False
        for group in self.param_groups:
            plain = group["fused"] and not group["amsgrad"] and not group["maximize"]
            found = {
                weight: self._parts(weight) if plain else None
                for weight in group["params"]
                if weight.grad is not None
            }
            parts = {weight: each for weight, each in found.items() if each is not None}
            taken += parts
            left = left or len(parts) < len(found)
            if parts:
                _kernels().adamw(
                    *map(list, zip(*parts.values(), strict=True)),
                    learning_rate=group["lr"],
                    betas=group["betas"],
                    epsilon=group["eps"],
                    weight_decay=group["weight_decay"],
                    divisor=self.grad_scale,
                    found_inf=self.found_inf,
                )
        if left:
            with _without_gradients(taken):
                super().step()

    def _parts(self, weight: Tensor) -> tuple[Tensor, ...] | None:
        """Weight, gradient, moments and step count as this rank holds them; None where torch is to step."""
        assert weight.grad is not None
        own = own_part(weight)
        if not picked(own, self.kernel):
            return None
        state = self.state[weight]
        if not state:
            # As torch makes it.
            state["step"] = torch.zeros((), dtype=torch.float32, device=own.device)
            state["exp_avg"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        moments = own_part(state["exp_avg"]), own_part(state["exp_avg_sq"])
        parts = (own, own_part(weight.grad), *moments, state["step"])
        return parts if suited(parts) else None


@contextmanager
def _without_gradients(weights: list[Tensor]) -> Iterator[None]:
    """Inside, an optimiser leaves the weights alone."""
    gradients = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    try:
        yield
    finally:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient


def _kernels() -> ModuleType:
    # Imported where it is used: Triton takes long to start, and need not be installed.
    return import_module("bitnet_trainer.optim.kernels.adamw")
