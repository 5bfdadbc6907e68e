"""AdamW by kernels: steps are torch's, gradients are only read, and what does not suit is torch's own."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

import sharded_steps
from bitnet_trainer.optim import MuonClip, clip_in_update, set_learning_rate
from bitnet_trainer.optim.adamw import fused_adamw
from bitnet_trainer.optim.shards import own_part
from families import small_model
from optimizers import everything, groups_of, parameters, small_muonclip

SIZES = [(3, 40), (8,), (1, 5), (300, 7), (), (2048,), (64, 96)]
"""Parts of a block, whole ones and several; lengths that 4 divides, and that it does not."""

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are interpreted only where there is no GPU"
)


def groups(dtype=torch.float32):
    return groups_of(SIZES, torch.device("cpu"), dtype)


def by_kernel(made=None):
    optimizer = fused_adamw(groups() if made is None else made)
    optimizer.kernel = True
    return optimizer


def by_torch(dtype=torch.float32):
    return torch.optim.AdamW(groups(dtype), betas=(0.9, 0.95), fused=True)


def give(optimizer, seed, poison=0.0):
    """Gradients, the same for each optimiser."""
    generator = torch.Generator().manual_seed(seed)
    for weight in parameters(optimizer):
        weight.grad = (torch.randn(weight.shape, generator=generator) + poison).to(weight.dtype)


def copied(tensors):
    return [tensor.detach().clone() for tensor in tensors]


def assert_alike(one, other, rtol=2e-6, atol=2e-7):
    for mine, theirs in zip(everything(one), everything(other), strict=True):
        torch.testing.assert_close(mine, theirs.to(mine.dtype), rtol=rtol, atol=atol)


@pytest.mark.parametrize(("scale", "guarded"), [(None, False), (3.7, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_are_torchs(scale, guarded, dtype):
    """And no further from float64's than rounding."""
    one, other = by_kernel(), by_torch(dtype)
    for seed in range(1, 4):
        for optimizer in (one, other):
            give(optimizer, seed)
            optimizer.grad_scale = None if scale is None else torch.tensor(scale)
            optimizer.found_inf = torch.tensor(0.0) if guarded else None
            before = copied(weight.grad for weight in parameters(optimizer))
            optimizer.step()
            if optimizer is one:
                after = [weight.grad for weight in parameters(one)]
                assert all(map(torch.equal, after, before))
    assert_alike(one, other)


@pytest.mark.parametrize("count", [0, 1, 14, 1000, 2**24 - 1])
def test_corrections_are_float64s_at_any_count(count, monkeypatch):
    """Of each parameter's own, over several programs. What is compared is a step from 0, in which nothing
    cancels."""
    monkeypatch.setattr(pytest.importorskip("bitnet_trainer.optim.kernels.adamw"), "_COUNTS", 2)
    one, other = by_kernel(), by_torch(torch.float64)
    for optimizer in (one, other):
        give(optimizer, 1)
        optimizer.step()
        for place, weight in enumerate(parameters(optimizer)):
            weight.zero_()
            state = optimizer.state[weight]
            state["exp_avg"].abs_()
            state["step"].fill_(max(0, count - place))
            weight.grad.abs_()
        optimizer.step()
    assert_alike(one, other, rtol=1e-6, atol=0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_step_leaves_no_trace(first, poison):
    optimizer = by_kernel()
    if not first:
        give(optimizer, 1)
        optimizer.step()
    before = copied(everything(optimizer))
    give(optimizer, 2, poison)
    optimizer.grad_scale = torch.tensor(poison)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    after = everything(optimizer)
    assert all(map(torch.equal, after, before))
    made = after[len(before) :]
    assert bool(made) == first
    assert not any(value.any() for value in made)


@pytest.mark.parametrize("mine_first", [True, False])
def test_state_goes_to_torchs_and_comes_from_it(mine_first):
    """A run that changes between them is that of one."""
    first, then = (by_kernel(), by_torch()) if mine_first else (by_torch(), by_kernel())
    whole = by_torch()
    for optimizer in (first, whole):
        give(optimizer, 1)
        optimizer.step()
    state = copy.deepcopy(first.state_dict())
    assert [group.keys() for group in state["param_groups"]] == [
        group.keys() for group in whole.state_dict()["param_groups"]
    ]
    for mine, theirs in zip(state["state"].values(), whole.state_dict()["state"].values(), strict=True):
        assert {name: (value.shape, value.dtype) for name, value in mine.items()} == {
            name: (value.shape, value.dtype) for name, value in theirs.items()
        }
    then.load_state_dict(state)
    for weight, value in zip(parameters(then), parameters(first), strict=True):
        weight.copy_(value)
    for optimizer in (then, whole):
        give(optimizer, 2)
        optimizer.step()
    assert_alike(then, whole)


def test_without_a_gradient_nothing_changes():
    optimizer = by_kernel()
    give(optimizer, 1)
    alone = parameters(optimizer)[1::2]
    for weight in alone:
        weight.grad = None
    before = copied(parameters(optimizer))
    optimizer.step()
    changed = [not torch.equal(*pair) for pair in zip(parameters(optimizer), before, strict=True)]
    assert changed == [number % 2 == 0 for number in range(len(SIZES))]
    assert not any(optimizer.state.get(weight) for weight in alone)


def unsuited():
    """Of float64; not in one piece; not where 16 bytes begin; and one that suits."""
    return [
        torch.ones(4, 6, dtype=torch.float64),
        torch.ones(6, 4).t(),
        torch.ones(25)[1:],
        torch.ones(4, 6),
    ]


@pytest.mark.parametrize("bad", [False, True])
def test_what_does_not_suit_is_torchs(bad):
    one = by_kernel([{"params": unsuited(), "weight_decay": 0.1}])
    other = torch.optim.AdamW(unsuited(), lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    one.param_groups[0]["lr"] = 0.01
    for seed in (1, 2):
        for optimizer in (one, other):
            give(optimizer, seed)
            optimizer.grad_scale = torch.tensor(2.0)
            optimizer.found_inf = torch.tensor(float(bad))
            optimizer.step()
    found = everything(one)
    assert all(map(torch.equal, found[:3], everything(other)[:3]))
    assert_alike(one, other)
    # torch's leaves gradients divided, if it does anything.
    gradients = [[weight.grad for weight in parameters(optimizer)] for optimizer in (one, other)]
    assert list(map(torch.equal, *gradients)) == [True, True, True, bad]


@pytest.mark.parametrize("option", [{"amsgrad": True}, {"maximize": True}, {"fused": False}], ids=str)
def test_other_kinds_of_adamw_are_torchs(option):
    """As a state dict may ask for."""
    one, other = by_kernel(), torch.optim.AdamW(groups(), betas=(0.9, 0.95), **({"fused": True} | option))
    for group in one.param_groups:
        group.update(option)
    for seed in (1, 2):
        for optimizer in (one, other):
            give(optimizer, seed)
            optimizer.step()
    assert all(map(torch.equal, everything(one), everything(other)))


def test_a_rank_steps_its_own_parts(tmp_path):
    ranks = sharded_steps.joined(str(tmp_path / "store"), 0, 1)
    try:
        pair = [sharded_steps.Training(ranks, "ours", sharded=each, muonclip=False) for each in (True, False)]
        pair[0].optimizer.kernel = True
        for _ in range(2):
            for training in pair:
                training.backward()
                set_learning_rate(training.optimizer, 1.0)
                clip_in_update(training.optimizer, 0.1)
                before = copied(own_part(weight.grad) for weight in training.model.parameters())
                training.optimizer.step()
                after = [own_part(weight.grad) for weight in training.model.parameters()]
                assert all(map(torch.equal, after, before)) == (training is pair[0])
        for state in pair[0].optimizer.state.values():
            assert {name: isinstance(value, DTensor) for name, value in state.items()} == {
                "step": False,
                "exp_avg": True,
                "exp_avg_sq": True,
            }
        found, expected = (training.everything() for training in pair)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    finally:
        dist.destroy_process_group()


def test_the_cpu_has_torchs():
    one, other = fused_adamw(groups()), by_torch()
    for optimizer in (one, other):
        give(optimizer, 1)
        optimizer.step()
    assert all(map(torch.equal, everything(one), everything(other)))


def test_muonclip_takes_it_for_what_is_not_hidden():
    found = []
    for kernel in (True, False):
        model = small_model()
        optimizer = small_muonclip(model)
        assert isinstance(optimizer, MuonClip)
        optimizer._adamw.kernel = kernel
        set_learning_rate(optimizer, 1.0)
        give(optimizer, 1)
        clip_in_update(optimizer, 0.5)
        optimizer.found_inf = torch.zeros(())
        before = copied(weight.grad for weight in model.parameters())
        optimizer.step()
        read = [torch.equal(w.grad, was) for w, was in zip(model.parameters(), before, strict=True)]
        assert all(read) == kernel
        found.append(optimizer)
    assert_alike(*found)
