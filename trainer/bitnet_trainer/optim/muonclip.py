"""MuonClip as one optimiser: Muon for hidden matrices, AdamW for the rest, QK-clip after both."""

import torch
from torch import Tensor, nn

from bitnet_trainer.optim.adamw import fused_adamw
from bitnet_trainer.optim.muon import Kernels, muon_step
from bitnet_trainer.optim.qk_clip import QKClip
from bitnet_trainer.optim.roles import parameter_group, parameters_by_role


class MuonClip(torch.optim.Optimizer):
    """Muon on the groups of role hidden, FusedAdamW on the others, then QK-clip (arXiv 2507.20534).

    `zero_grad` begins a step: it forgets gradients, and the largest logits that came with them. The state
    dict is that of any optimiser: `momentum` a hidden matrix, AdamW's own for the others. As in FusedAdamW,
    a `found_inf` of 1 leaves the whole step out, decided on the device, and gradients are divided by
    `grad_scale` as they are read.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None
    kernels: Kernels | None = None
    """What Triton does of Muon; None picks by device."""

    def __init__(
        self,
        model: nn.Module,
        clip: QKClip,
        *,
        muon_learning_rate: float,
        adam_learning_rate: float,
        weight_decay: float,
    ) -> None:
        """
        Args:
            model: what is trained of it is grouped by role.
            clip: of the same model.
            muon_learning_rate: peak for the hidden matrices.
            adam_learning_rate: peak for the others.
            weight_decay: of all but vectors.

        Nothing moves until `set_learning_rate` gives a share of the peaks.
        """
        groups = [
            parameter_group(
                role,
                parameters,
                peak=muon_learning_rate if role == "hidden" else adam_learning_rate,
                weight_decay=weight_decay,
            )
            for role, parameters in parameters_by_role(model).items()
        ]
        self._clip = clip
        self._adamw = fused_adamw([group for group in groups if group["role"] != "hidden"])
        hidden = [group for group in groups if group["role"] == "hidden"]
        super().__init__([*hidden, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Updates every parameter that has a gradient. No closure is evaluated; DCP passes none, by name."""
        skipped = None if self.found_inf is None else self.found_inf.bool()
        for group in self.param_groups:
            if group["role"] == "hidden":
                weights = [weight for weight in group["params"] if weight.grad is not None]
                muon_step(
                    weights,
                    [weight.grad for weight in weights],
                    [self._momentum(weight) for weight in weights],
                    learning_rate=group["lr"],
                    weight_decay=group["weight_decay"],
                    divisor=self.grad_scale,
                    skipped=skipped,
                    kernels=self.kernels,
                )
        self._step_adamw()
        self._clip.apply(skipped)

    @property
    def attention_figures(self) -> Tensor:
        """(2,) float64 on the device, of the last step: the largest logit of all heads, and how many heads
        were clipped."""
        return self._clip.figures

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets gradients, and the largest logits that came with them."""
        super().zero_grad(set_to_none)
        self._clip.forget()

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum"]
        return momentum

    def _step_adamw(self) -> None:
        # Shared anew each time: loading a state dict puts other objects in their places.
        self._adamw.state = self.state
        self._adamw.param_groups = [group for group in self.param_groups if group["role"] != "hidden"]
        self._adamw.found_inf, self._adamw.grad_scale = self.found_inf, self.grad_scale
        self._adamw.step()
