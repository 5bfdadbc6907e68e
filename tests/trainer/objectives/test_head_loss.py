"""Head and loss in one: plain autograd's gradients, made once, added up in float32; and the kernels."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from answering import few
from bitnet_trainer.batch import IGNORED
from bitnet_trainer.objectives.cross_entropy import of_targets
from bitnet_trainer.objectives.head_loss import sum_over_tokens
from bitnet_trainer.objectives.kernels import rows, rows_triton
from bitnet_trainer.objectives.teacher_logits import of_teacher, of_top_k
from bitnet_trainer.objectives.top_k import top_k_of

TOKENS, WIDTH, VOCABULARY = 7, 4, 11


def inputs(seed=0, *, bias=True, dtype=torch.float64):
    """Hidden states, a head and targets, some of them IGNORED."""
    torch.manual_seed(seed)
    hidden = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    targets = torch.randint(VOCABULARY, (TOKENS,)).masked_fill(torch.rand(TOKENS) < 0.3, IGNORED)
    return hidden, nn.Linear(WIDTH, VOCABULARY, bias, dtype=dtype), targets


def plain(logits, targets):
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


class Products(TorchDispatchMode):
    """Counts the products of matrices inside."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return func(*args, **(kwargs or {}))


@few
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([1, 3, 100]), st.sets(st.sampled_from("hwb")))
def test_gradients_are_plain_autograds_whatever_is_frozen(seed, bias, chunk, frozen):
    hidden, head, targets = inputs(seed, bias=bias)
    named = {"h": hidden, "w": head.weight, "b": head.bias}
    trained = []
    for name, tensor in named.items():
        if tensor is not None:
            tensor.requires_grad_(name not in frozen)
            trained += [tensor] * (name not in frozen)
    found = sum_over_tokens(of_targets, hidden, head, targets, chunk_tokens=chunk)
    expected = plain(head(hidden), targets)
    torch.testing.assert_close(found, expected)
    assert found.requires_grad == bool(trained)
    if trained:
        for one, other in zip(
            *(torch.autograd.grad(0.3 * x, trained) for x in (found, expected)), strict=True
        ):
            torch.testing.assert_close(one, other)


def test_no_product_is_computed_twice_nor_a_gradient_where_none_is_wanted():
    hidden, head, targets = inputs()
    with Products() as forward:
        total = sum_over_tokens(of_targets, hidden, head, targets, chunk_tokens=4)
    with Products() as backward:
        total.backward(retain_graph=True)
    with torch.no_grad(), Products() as evaluation:
        sum_over_tokens(of_targets, hidden, head, targets, chunk_tokens=4)
    assert (forward.count, backward.count, evaluation.count) == (2 * 3, 0, 2)
    once = head.weight.grad.clone()
    total.backward()
    torch.testing.assert_close(head.weight.grad, 2 * once)


def test_the_weights_gradient_is_added_up_in_float32():
    """Of 512 chunks in bfloat16; added up in bfloat16 it would be a few percent off."""
    torch.manual_seed(0)
    hidden, head = torch.randn(4096, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
    targets = torch.randint(3, (4096,))
    with torch.autocast("cpu", torch.bfloat16):
        sum_over_tokens(of_targets, hidden, head, targets, chunk_tokens=8).backward()
    found, head.weight.grad = head.weight.grad, None
    plain(head(hidden), targets).backward()
    assert (found - head.weight.grad).norm() < 2e-3 * head.weight.grad.norm()
    assert found.dtype == torch.float32


def test_a_head_that_is_more_than_a_linear_is_asked():
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    hidden, linear, targets = inputs()
    doubled = Doubled(WIDTH, VOCABULARY, dtype=torch.float64)
    doubled.load_state_dict(linear.state_dict())
    hooked = nn.Linear(WIDTH, VOCABULARY, dtype=torch.float64)
    hooked.load_state_dict(linear.state_dict())
    hooked.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    expected = plain(2 * linear(hidden), targets)
    (gradient,) = torch.autograd.grad(expected, linear.weight)
    for head in (doubled, hooked):
        found = sum_over_tokens(of_targets, hidden, head, targets, chunk_tokens=4)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, head.weight)[0], gradient)


def test_what_is_no_number_stays_none_in_the_loss_of_tokens_that_count():
    hidden, head, targets = inputs()
    targets[:] = IGNORED
    targets[2] = 1
    for place, finite in ((1, True), (2, False)):
        broken = hidden.detach().clone()
        broken[place, 0] = torch.nan
        loss = sum_over_tokens(of_targets, broken.requires_grad_(), head, targets)
        assert loss.isfinite() == finite


DIFFERENTIABLE = ("crossEntropy", "all", "Bucket", "Renormalized")
LOSSES = (*DIFFERENTIABLE, "whole Bucket")


def loss_of(name, seed, dtype, temperature=2.5):
    """A loss, and what it knows of TOKENS tokens besides their logits."""
    torch.manual_seed(seed)
    targets = torch.randint(VOCABULARY, (TOKENS,)).masked_fill(torch.rand(TOKENS) < 0.3, IGNORED)
    if name == "crossEntropy":
        return of_targets, (targets,)
    hidden, teacher = torch.randn(TOKENS, 3, dtype=dtype), nn.Linear(3, VOCABULARY, dtype=dtype)
    if name == "all":
        return partial(of_teacher, head=teacher, temperature=temperature), (hidden, targets)
    top = top_k_of(hidden, teacher, 20 if name == "whole Bucket" else 4, temperature)
    return partial(of_top_k, temperature=temperature, tail=name.split()[-1]), (*top, targets)


@few
@given(st.integers(0, 10**6), st.sampled_from(DIFFERENTIABLE), st.sampled_from([1.0, 2.5]))
def test_the_gradient_that_a_loss_writes_is_that_of_its_value(seed, name, temperature):
    loss, known = loss_of(name, seed, torch.float64, temperature)
    logits = (3 * torch.randn(TOKENS, VOCABULARY, dtype=torch.float64)).requires_grad_()
    value = loss(logits, *known, gradient=False)
    (expected,) = torch.autograd.grad(value.sum(), logits)
    written = logits.detach().clone()
    torch.testing.assert_close(loss(written, *known, gradient=True), value)
    torch.testing.assert_close(written, expected)


@given(st.integers(0, 10**6), st.sampled_from(LOSSES), st.sampled_from([3, 100]))
@settings(max_examples=10, deadline=None)
def test_a_head_is_only_asked_or_fused_to_the_same_end(seed, name, chunk):
    loss, known = loss_of(name, seed, torch.float64)
    hidden, head, _ = inputs(seed)
    ends = []
    for way in (head, lambda hidden: head(hidden)):
        total = sum_over_tokens(loss, hidden, way, *known, chunk_tokens=chunk)
        ends.append((total, *torch.autograd.grad(total, (hidden, head.weight, head.bias))))
    torch.testing.assert_close(*ends)


# --- the kernels, interpreted, beside what they stand for

interpreted = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the log of 0


@pytest.fixture
def small_blocks(monkeypatch):
    """So that a row has several, the last of them not full."""
    monkeypatch.setattr(rows_triton, "BLOCK", 4)


def pulls(count):
    apart = torch.randn(count)
    apart[0] = -torch.inf
    return rows.Pull(apart, torch.rand(count), torch.rand(count))


@interpreted
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_kernel_of_log_sums_is_its_twin(dtype, temperature):
    torch.manual_seed(0)
    logits = (3 * torch.randn(5, 16)).to(dtype)[:, :VOCABULARY]
    logits[1, :5] = logits[2] = -torch.inf
    logits[3, 7] = torch.nan
    for pull in (None, pulls(5)):
        mine, theirs = logits.clone(), logits.clone()
        found = rows_triton.log_sums(mine, temperature, pull)
        torch.testing.assert_close(found, rows.log_sums(theirs, temperature, pull), equal_nan=True)
        torch.testing.assert_close(mine, theirs, equal_nan=True)
        assert torch.equal(mine.isnan().any(-1), logits.isnan().any(-1))
        assert (pull is None) == torch.equal(mine[0], logits[0])


@interpreted
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_of_divergences_is_its_twin(dtype):
    torch.manual_seed(0)
    logits, goal = ((4 * torch.randn(5, 16)).to(dtype)[:, :VOCABULARY] for _ in range(2))
    goal[0, :6] = logits[1, :5] = goal[1, :5] = -torch.inf
    goal[2] = logits[2] + 20
    logits[3, 7] = torch.nan
    for weights in (None, torch.rand(5)):
        mine, theirs, before = logits.clone(), logits.clone(), goal.clone()
        found = rows_triton.divergences(mine, goal, 2.5, weights)
        torch.testing.assert_close(found, rows.divergences(theirs, goal, 2.5, weights), equal_nan=True)
        torch.testing.assert_close(mine, theirs, equal_nan=True)
        assert torch.equal(found.isnan(), logits.isnan().any(-1))
        assert torch.equal(goal, before)
        assert (weights is None) == torch.equal(mine[0], logits[0])


@interpreted
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", LOSSES)
def test_with_kernels_a_loss_and_its_gradients_are_the_same(name, monkeypatch):
    loss, known = loss_of(name, 0, torch.float32)
    hidden, head, _ = inputs(dtype=torch.float32)
    ends = []
    for kernels in (None, rows_triton):
        monkeypatch.setattr(rows, "_kernels", lambda *_, kernels=kernels: kernels)
        total = sum_over_tokens(loss, hidden, head, *known, chunk_tokens=3)
        ends.append((total, *torch.autograd.grad(total, (hidden, head.weight, head.bias))))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)
