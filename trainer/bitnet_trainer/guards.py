"""Leaves out a step whose loss or gradient is not finite: decided, counted and agreed on the device."""

import torch
import torch.distributed as dist


class NonFiniteGuard:
    """Tells the optimiser to leave out a bad step, and counts such steps, without a read from the device.

    A clipped or zeroed gradient would not do: moments would decay, and weight decay would act. So the flag
    goes into the fused optimiser's `found_inf`, which leaves weights, moments and step counts as they were.
    """

    def __init__(self, device: torch.device, skipped: int = 0, in_row: int = 0) -> None:
        """Goes on after `skipped` steps left out in all, the last `in_row` of them just before."""
        self._counts = torch.tensor([skipped, in_row], dtype=torch.float32, device=device)
        self.left_out = torch.zeros((), device=device)
        """0-dim float32: 1 where the step judged last is left out, else 0."""

    def judge(
        self, loss: torch.Tensor, gradient_norm: torch.Tensor, optimizer: torch.optim.Optimizer
    ) -> None:
        """Call between backward and `optimizer.step()`, on every rank.

        `loss` and `gradient_norm` are 0-dim, on the device; one rank's bad value makes all ranks skip.
        """
        finite = torch.isfinite(loss) & torch.isfinite(gradient_norm)
        bad = (~finite).to(torch.float32)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        self.left_out = bad
        optimizer.found_inf = bad  # type: ignore[attr-defined]  # read by fused optimisers
        self._counts = torch.stack((self._counts[0] + bad, (self._counts[1] + bad) * bad))

    def counts(self) -> torch.Tensor:
        """(2,) float32 on the device: steps skipped in all, and in a row up to now."""
        return self._counts
