"""Weights averaged over the steps of training: what is evaluated and exported where a run asks for it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bitnet_trainer.optim.shards import own_part


class WeightAverage:
    """An exponential moving average of the trained weights, in float32 at least.

    After step t (from 1): `average += (1 - d_t) * (weights - average)`, `d_t = min(decay, t / (9 + t))`, so
    that a short run's average is not mostly what it began with. d_t follows from the step of the ledger: an
    average that goes on from a checkpoint is the one that was never stopped. Sharded weights have sharded
    averages. Source of the rise: TensorFlow's ExponentialMovingAverage with num_updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            model: its trained parameters are averaged, beginning with what they are now. Frozen ones and
                buffers are not.
            decay: d, above 0 and below 1.
        """
        self._decay = decay
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._averages = {name: _copy(weight) for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int, left_out: Tensor) -> None:
        """Takes in the weights after `step` steps; call it after each.

        `left_out` is 0-dim, float32, on the device: 1 where the step changed no weight, which leaves the
        average as it was. The host does not wait for it.
        """
        share = (1 - min(self._decay, step / (9 + step))) * (1 - left_out)
        for name, average in self._averages.items():
            local = own_part(average)
            local.lerp_(own_part(self._weights[name]).to(local.dtype), share.to(local.dtype))

    @torch.no_grad()
    def take_over(self) -> None:
        """Puts the averages in the weights' place. Training cannot go on from there."""
        for name, weight in self._weights.items():
            own_part(weight).copy_(own_part(self._averages[name]))

    def state_dict(self) -> dict[str, Tensor]:
        """The averages themselves, by the parameters' names."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes the averages of a checkpoint. Raises KeyError where one is missing."""
        for name, average in self._averages.items():
            own_part(average).copy_(own_part(state[name]))


def _copy(weight: Tensor) -> Tensor:
    average = weight.detach().clone()
    return average if average.dtype == torch.float64 else average.float()
