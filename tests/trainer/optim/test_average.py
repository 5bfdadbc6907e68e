"""Averaged weights: the closed form, what is left out, and going on from a state."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bitnet_trainer.optim import WeightAverage

TAKEN, LEFT_OUT = torch.tensor(0.0), torch.tensor(1.0)


def train(model, average, steps, seed=0, left_out=()):
    """Moves the weights at random, `steps` being counted from 1; gives each step's weights."""
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for step in steps:
        with torch.no_grad():
            for parameter in model.parameters():
                change = torch.randn(parameter.shape, generator=generator)
                if step not in left_out:
                    parameter += change
        average.update(step, LEFT_OUT if step in left_out else TAKEN)
        weights.append(model.weight.detach().clone())
    return weights


@given(decay=st.floats(0.01, 0.999), steps=st.integers(1, 30))
def test_it_is_the_closed_form(decay, steps):
    """The sum of all weights so far, each by what later steps left of it."""
    model = nn.Linear(3, 2)
    weights = [model.weight.detach().clone()]
    average = WeightAverage(model, decay)
    weights += train(model, average, range(1, steps + 1))
    kept = [min(decay, step / (9 + step)) for step in range(1, steps + 1)]
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for number, each in enumerate(weights):
        share = 1.0 if number == 0 else 1 - kept[number - 1]
        for later in kept[number:]:
            share *= later
        expected += share * each.double()
    torch.testing.assert_close(average.state_dict()["weight"].double(), expected, atol=1e-4, rtol=1e-4)


def test_a_step_that_is_left_out_leaves_it_to_the_bit():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.5)
    train(model, average, [1, 2])
    before = copy.deepcopy(average.state_dict())
    train(model, average, [3, 4], left_out=(3, 4))
    assert all(torch.equal(before[name], value) for name, value in average.state_dict().items())


def test_what_is_frozen_and_what_is_no_parameter_stays_out_of_it():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model[0].bias.requires_grad_(False)
    average = WeightAverage(model, 0.5)
    assert set(average.state_dict()) == {"0.weight", "1.weight", "1.bias"}


def test_half_precision_weights_have_averages_that_take_in_small_changes():
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    average = WeightAverage(model, 0.999)
    nn.init.constant_(model.weight, 1.0078125)  # the next number that bfloat16 has
    average.update(100_000, TAKEN)
    assert average.state_dict()["weight"].dtype == torch.float32
    assert average.state_dict()["weight"].item() == pytest.approx(1 + 0.0078125e-3, rel=1e-7)


def test_it_goes_on_from_a_state_and_takes_the_weights_place():
    torch.manual_seed(0)
    whole = nn.Linear(3, 2)
    start = copy.deepcopy(whole)
    average = WeightAverage(whole, 0.7)
    train(whole, average, range(1, 5), seed=1)
    stopped, half = copy.deepcopy(whole), copy.deepcopy(average.state_dict())
    train(whole, average, range(5, 9), seed=2)

    resumed = WeightAverage(start, 0.7)
    start.load_state_dict(stopped.state_dict())
    resumed.load_state_dict(half)
    train(start, resumed, range(5, 9), seed=2)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in average.state_dict().items())

    last = start.weight.detach().clone()
    resumed.take_over()
    assert torch.equal(start.weight, average.state_dict()["weight"])
    assert not torch.equal(start.weight, last)


def test_a_state_without_one_of_them_is_refused():
    average = WeightAverage(nn.Linear(3, 2), 0.5)
    with pytest.raises(KeyError, match="bias"):
        average.load_state_dict({"weight": torch.zeros(2, 3)})
