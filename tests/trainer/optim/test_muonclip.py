"""MuonClip as an optimiser: each role its algorithm, a bad step leaves no trace, a checkpoint holds all."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from bitnet_trainer.checkpoint.state import Training, read_tensors, write_tensors
from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.optim import clip_in_update, set_learning_rate
from bitnet_trainer.optim.muon import muon_step
from bitnet_trainer.optim.roles import parameters_by_role
from families import VOCABULARY, loss_of, small_model
from optimizers import small_muonclip


def training(seed=0, architecture="LlamaForCausalLM"):
    model = small_model(architecture, seed=seed)
    optimizer = small_muonclip(model)
    set_learning_rate(optimizer, 1.0)
    return model, optimizer


def gradients(model, optimizer, seed):
    optimizer.zero_grad()
    sequences = torch.randint(VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(seed))
    loss = loss_of(model, sequences)
    loss.backward()
    return loss.detach()


def step(model, optimizer, seed, poison=None):
    loss = gradients(model, optimizer, seed)
    if poison is not None:
        next(model.parameters()).grad[0, 0] = poison
    norm = clip_in_update(optimizer, 1.0)
    NonFiniteGuard(torch.device("cpu")).judge(loss, norm, optimizer)
    optimizer.step()


def everything(model, optimizer):
    weights, state = get_state_dict(model, optimizer)
    flat = {name: value.clone() for name, value in weights.items()}
    for name, parts in state["state"].items():
        flat |= {f"{name} {key}": value.clone() for key, value in parts.items()}
    return flat


def differing(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def test_each_role_has_its_algorithm():
    """Hidden matrices move as `muon_step` has it, the others as torch's fused AdamW."""
    model, optimizer = training()
    twin = copy.deepcopy(model)
    roles = parameters_by_role(twin)
    others = [p for role, found in roles.items() if role != "hidden" for p in found]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
        fused=True,
    )
    momenta = [torch.zeros_like(p) for p in roles["hidden"]]
    for number in range(3):
        gradients(model, optimizer, number)
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            theirs.grad = ours.grad.clone()
        optimizer.step()
        adamw.step()
        for weight, momentum in zip(roles["hidden"], momenta, strict=True):
            with torch.no_grad():
                muon_step([weight], [weight.grad], [momentum], learning_rate=0.02, weight_decay=0.1)
    assert differing(dict(model.named_parameters()), dict(twin.named_parameters())) == []


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nothing_of_a_bad_step_survives(poison):
    model, optimizer = training()
    step(model, optimizer, 0)
    before = everything(model, optimizer)
    step(model, optimizer, 1, poison)
    assert differing(before, everything(model, optimizer)) == []
    step(model, optimizer, 2)
    whole = everything(model, optimizer)

    twin, twin_optimizer = training()
    for number in (0, 2):
        step(twin, twin_optimizer, number)
    assert differing(whole, everything(twin, twin_optimizer)) == []


def test_a_bad_first_step_leaves_no_trace():
    model, optimizer = training()
    before = copy.deepcopy(model.state_dict())
    step(model, optimizer, 0, math.nan)
    assert differing(before, model.state_dict()) == []
    assert all(torch.isfinite(value).all() for value in everything(model, optimizer).values())


def test_a_parameter_without_a_gradient_stays():
    model, optimizer = training()
    name, weight = next((n, p) for n, p in model.named_parameters() if n.endswith("q_proj.weight"))
    before = weight.detach().clone()
    optimizer.zero_grad()
    loss_of(model, torch.arange(8)[None]).backward()
    weight.grad = None
    optimizer.step()
    assert torch.equal(weight, before), name


def test_state_dicts_come_and_go():
    model, optimizer = training()
    for number in range(2):
        step(model, optimizer, number)
    weights, state = copy.deepcopy(get_state_dict(model, optimizer))
    step(model, optimizer, 2)

    twin, twin_optimizer = training(seed=1)
    get_state_dict(twin, twin_optimizer)
    set_state_dict(twin, twin_optimizer, model_state_dict=weights, optim_state_dict=state)
    step(twin, twin_optimizer, 2)
    assert differing(everything(model, optimizer), everything(twin, twin_optimizer)) == []


@pytest.mark.parametrize("skipped_before", [False, True])
def test_training_goes_on_from_a_checkpoint_bit_for_bit(tmp_path, skipped_before):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, optimizer = training()
        for number in range(3):
            step(model, optimizer, number, math.nan if skipped_before and number == 2 else None)
        write_tensors(tmp_path, Training(model, optimizer).tensors({}), dist.group.WORLD)
        for number in (3, 4):
            step(model, optimizer, number)

        twin, twin_optimizer = training(seed=1)
        read_tensors(tmp_path, Training(twin, twin_optimizer), dist.group.WORLD)
        for number in (3, 4):
            step(twin, twin_optimizer, number)
        assert differing(everything(model, optimizer), everything(twin, twin_optimizer)) == []
    finally:
        dist.destroy_process_group()
