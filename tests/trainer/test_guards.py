"""The guard: a step that is not finite leaves no trace in weights or moments, and is counted."""

import copy
import math

import pytest
import torch
from torch import nn

from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.optim import build_adamw, clip_in_update, set_learning_rate


def step(model, optimizer, guard, loss=1.0, poison=None):
    """One update with random gradients; `poison` goes into one element of one of them."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    if poison is not None:
        model[1].bias.grad[0] = poison
    norm = clip_in_update(optimizer, 1.0)
    guard.judge(torch.tensor(loss, dtype=torch.float64), norm, optimizer)
    optimizer.step()


@pytest.fixture
def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    optimizer = build_adamw(model, learning_rate=1.0, weight_decay=0.1)
    set_learning_rate(optimizer, 0.01)
    guard = NonFiniteGuard(torch.device("cpu"))
    for _ in range(3):
        step(model, optimizer, guard)
    return model, optimizer, guard


def everything(model, optimizer):
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    flat = {f"model {name}": value for name, value in state[0].items()}
    return flat | {f"{n} {name}": value for n, part in state[1].items() for name, value in part.items()}


@pytest.mark.parametrize(
    ("loss", "poison"), [(math.nan, None), (math.inf, None), (1.0, math.nan), (1.0, -math.inf)]
)
def test_nothing_of_a_bad_step_survives(trained, loss, poison):
    model, optimizer, guard = trained
    before = everything(model, optimizer)
    step(model, optimizer, guard, loss, poison)
    after = everything(model, optimizer)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert guard.counts().tolist() == [1, 1]


def test_the_next_good_step_is_as_if_the_bad_one_had_not_been(trained):
    model, optimizer, guard = trained
    torch.manual_seed(1)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    step(model, optimizer, guard, poison=math.nan)
    for each, its in ((model, optimizer), (twin, twin_optimizer)):
        torch.manual_seed(2)
        step(each, its, NonFiniteGuard(torch.device("cpu")))
    expected, found = everything(twin, twin_optimizer), everything(model, optimizer)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_bad_first_step_leaves_the_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    optimizer = build_adamw(model, learning_rate=1.0, weight_decay=0.1)
    set_learning_rate(optimizer, 0.01)
    before = copy.deepcopy(model.state_dict())
    step(model, optimizer, NonFiniteGuard(torch.device("cpu")), poison=math.nan)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_skips_are_counted_in_all_and_in_a_row(trained):
    model, optimizer, guard = trained
    for loss in (math.nan, math.nan, 1.0, math.nan):
        step(model, optimizer, guard, loss)
    assert guard.counts().tolist() == [3, 1]


def test_the_count_goes_on_after_a_resume(trained):
    model, optimizer, _ = trained
    guard = NonFiniteGuard(torch.device("cpu"), skipped=5)
    step(model, optimizer, guard, math.nan)
    assert guard.counts().tolist() == [6, 1]


def test_norms_and_biases_are_not_decayed():
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    groups = build_adamw(model, learning_rate=1.0, weight_decay=0.1).param_groups
    found = {group["role"]: (group["weight_decay"], len(group["params"])) for group in groups}
    assert found == {"embedding": (0.1, 1), "vector": (0.0, 3), "head": (0.1, 1)}
    set_learning_rate(optimizer := build_adamw(model, learning_rate=1.0, weight_decay=0.1), 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}
