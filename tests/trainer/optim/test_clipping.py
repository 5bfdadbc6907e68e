"""Clipping in the update: what a step does is what it does after torch's own clipping."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.optim import build_adamw, clip_in_update, set_learning_rate
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.step import Stepper
from families import small_model
from optimizers import small_muonclip

CPU = torch.device("cpu")
OPTIMISERS = ("AdamW", "MuonClip")
LARGEST = 0.5


def training(name):
    model = small_model()
    optimizer = (
        build_adamw(model, learning_rate=0.01, weight_decay=0.1) if name == "AdamW" else small_muonclip(model)
    )
    set_learning_rate(optimizer, 1.0)
    return model, optimizer


def gradients(model, norm):
    """Random ones, the same for models that are alike."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    whole = nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    for parameter in model.parameters():
        parameter.grad *= norm / whole


def everything(model, optimizer):
    """Weights, then moments and step counts."""
    tensors = list(model.state_dict().values())
    for parts in optimizer.state_dict()["state"].values():
        tensors += parts.values()
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("name", OPTIMISERS)
@settings(max_examples=10)
@given(norms=st.lists(st.floats(0.01, 100.0), min_size=2, max_size=3))
def test_a_step_is_that_of_clipped_gradients(name, norms):
    """Of a few steps in a row, some above the largest norm and some below, each clipped by its own."""
    (model, optimizer), (twin, twins) = training(name), training(name)
    for norm in norms:
        gradients(model, norm)
        gradients(twin, norm)
        found = clip_in_update(optimizer, LARGEST)
        torch.testing.assert_close(found, nn.utils.clip_grad_norm_(twin.parameters(), LARGEST))
        optimizer.step()
        twins.step()
    for mine, theirs in zip(everything(model, optimizer), everything(twin, twins), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_nothing_to_clip_changes_no_bit(name):
    (model, optimizer), (twin, twins) = training(name), training(name)
    for each in (model, twin):
        gradients(each, 0.9 * LARGEST)
    clip_in_update(optimizer, LARGEST)
    optimizer.step()
    twins.step()
    assert all(map(torch.equal, everything(model, optimizer), everything(twin, twins)))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_rehearsal_after_a_bad_step_leaves_no_trace(name):
    """The bad step's norm is still what gradients would be divided by."""
    model, optimizer = training(name)
    gradients(model, 1.0)
    next(model.parameters()).grad[0, 0] = torch.inf
    guard = NonFiniteGuard(CPU)
    guard.judge(torch.zeros(()), clip_in_update(optimizer, LARGEST), optimizer)
    optimizer.step()
    before = everything(model, optimizer)
    stepper = Stepper(
        LanguageModel(model), 2, optimizer, guard, Ranks(0, 1, CPU, None), gradient_clipping=LARGEST
    )
    stepper.rehearse_update()
    assert all(map(torch.equal, before, everything(model, optimizer)))
    assert set(optimizer.state_dict()) == {"state", "param_groups"}
