"""Muon: what it does to one matrix, by formula, by a float64 twin and by torch's own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_trainer.optim.muon import muon_step
from bitnet_trainer.optim.newton_schulz import newton_schulz

SHAPES = [(8, 8), (6, 20), (20, 6), (1, 5)]


def quintic(values):
    """What five steps make of singular values that are already on [0, 1]."""
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_newton_schulz_is_a_polynomial_of_the_singular_values(rows, columns, seed, scale):
    torch.manual_seed(seed)
    matrix = scale * torch.randn(rows, columns, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    expected = u @ torch.diag(quintic(s / s.norm())) @ v
    torch.testing.assert_close(newton_schulz(matrix), expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(newton_schulz(matrix.float()), expected.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(64, 64), (32, 96)])
def test_singular_values_come_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(newton_schulz(torch.randn(*shape)))
    assert 0.65 < values.quantile(0.1) <= values.max() < 1.25


def test_no_gradient_is_no_direction():
    assert torch.equal(newton_schulz(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_by_formula(shape):
    """A twin in float64, its momentum not scaled by 0.05 as the papers write it."""
    torch.manual_seed(0)
    weight = torch.randn(*shape)
    momentum = torch.zeros(shape)
    twin, twin_momentum = weight.double(), torch.zeros(shape, dtype=torch.float64)
    for step in range(4):
        gradient = torch.randn(*shape)
        rate = 0.02 / (step + 1)
        muon_step([weight], [gradient], [momentum], learning_rate=rate, weight_decay=0.1)
        twin_momentum = 0.95 * twin_momentum + gradient.double()
        nesterov = gradient.double() + 0.95 * twin_momentum
        u, s, v = torch.linalg.svd(nesterov, full_matrices=False)
        direction = u @ torch.diag(quintic(s / s.norm())) @ v
        twin = twin - rate * (0.2 * math.sqrt(max(shape)) * direction + 0.1 * twin)
    torch.testing.assert_close(weight.double(), twin, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_is_torchs_where_they_coincide(shape):
    """torch runs the iteration in bfloat16 everywhere; ours on the CPU has float32, so that an update agrees
    to bfloat16's precision."""
    torch.manual_seed(0)
    weight = torch.randn(*shape)
    momentum, theirs = torch.zeros(shape), torch.nn.Parameter(weight.clone())
    before = weight.clone()
    options = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    optimizer = torch.optim.Muon([theirs], **options)
    for _ in range(3):
        theirs.grad = torch.randn(*shape)
        optimizer.step()
        muon_step([weight], [theirs.grad], [momentum], learning_rate=0.02, weight_decay=0.1)
        assert torch.equal(momentum, optimizer.state[theirs]["momentum_buffer"])
    difference, moved = (weight - theirs).norm(), (weight - before).norm()
    assert difference < 0.05 * moved


def test_an_update_has_the_root_mean_square_of_adamws():
    """0.2 at a rate of 1, whatever the shape (arXiv 2502.16982, section 2.2)."""
    for shape in ((64, 64), (32, 128), (128, 32)):
        torch.manual_seed(0)
        weight = torch.zeros(shape)
        muon_step([weight], [torch.randn(*shape)], [torch.zeros(shape)], learning_rate=1.0, weight_decay=0.0)
        assert weight.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_skipped_step_changes_nothing_whatever_is_in_the_gradient(poison):
    torch.manual_seed(0)
    weight, momentum, gradient = torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 6)
    gradient[1, 2] = poison
    before = weight.clone(), momentum.clone()
    muon_step(
        [weight], [gradient], [momentum], learning_rate=0.1, weight_decay=0.1, skipped=torch.tensor(True)
    )
    assert torch.equal(weight, before[0])
    assert torch.equal(momentum, before[1])


def test_a_step_that_is_not_skipped_is_as_without_the_question():
    torch.manual_seed(0)
    weight, momentum, gradient = torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 6)
    other, other_momentum = weight.clone(), momentum.clone()
    muon_step([weight], [gradient], [momentum], learning_rate=0.1, weight_decay=0.1)
    muon_step(
        [other],
        [gradient],
        [other_momentum],
        learning_rate=0.1,
        weight_decay=0.1,
        skipped=torch.tensor(False),
    )
    assert torch.equal(weight, other)
    assert torch.equal(momentum, other_momentum)
