"""AdamW by kernels on CUDA, against torch's fused AdamW there."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from bitnet_trainer.optim.adamw import fused_adamw
from optimizers import everything, groups_of, parameters

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
SIZES = [(3, 40), (8,), (1, 5), (300, 7), (), (2048,), (64, 96), (1000, 1030)]
"""Parts of a block, whole ones and many; lengths that 4 divides, and that it does not."""


def groups() -> list[dict[str, Any]]:
    return groups_of(SIZES, CUDA)


def step(optimizer: torch.optim.Optimizer, seed: int, poison: float = 0.0) -> bool:
    """Takes a step; whether all gradients are after it what they were."""
    generator = torch.Generator(CUDA).manual_seed(seed)
    before = [torch.randn(each.shape, generator=generator, device=CUDA) for each in parameters(optimizer)]
    for weight, gradient in zip(parameters(optimizer), before, strict=True):
        weight.grad = gradient + poison
    optimizer.grad_scale = torch.tensor(3.7 + poison, device=CUDA)
    optimizer.found_inf = torch.tensor(float(math.isnan(poison)), device=CUDA)
    optimizer.step()
    after = [weight.grad for weight in parameters(optimizer)]
    return all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, what makes the host wait for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_steps_are_torchs_and_gradients_stay() -> None:
    one, other = fused_adamw(groups()), torch.optim.AdamW(groups(), betas=(0.9, 0.95), fused=True)
    for seed in range(1, 6):
        assert step(one, seed)
        assert not step(other, seed)
    for mine, theirs in zip(everything(one), everything(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("first", [True, False])
def test_a_bad_step_leaves_no_trace(first: bool) -> None:
    optimizer = fused_adamw(groups())
    if not first:
        step(optimizer, 1)
    before = [tensor.clone() for tensor in everything(optimizer)]
    step(optimizer, 2, math.nan)
    after = everything(optimizer)
    made = after[len(before) :]
    assert all(map(torch.equal, before, after))
    assert bool(made) == first
    assert not any(value.any() for value in made)


def test_the_host_waits_for_nothing() -> None:
    optimizer = fused_adamw(groups())
    step(optimizer, 1)
    with no_waiting():
        optimizer.step()


def test_a_parameter_may_have_more_numbers_than_int32_counts() -> None:
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("weight, gradient and moments take 32 GiB")
    weight = torch.zeros(2**31 + 5, device=CUDA)
    optimizer = fused_adamw([{"params": [weight]}])
    optimizer.param_groups[0]["lr"] = 0.5
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    for moved in (weight.min(), weight.max()):
        torch.testing.assert_close(moved.item(), -0.5, rtol=1e-6, atol=0)
