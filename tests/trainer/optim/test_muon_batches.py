"""Many matrices in one step of Muon: what each becomes is what it becomes alone, by torch and by kernels."""

import math
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bitnet_trainer.optim import muon
from bitnet_trainer.optim.muon import Kernels, muon_step
from bitnet_trainer.optim.newton_schulz import newton_schulz, operations
from bitnet_trainer.optim.products import self_product
from bitnet_trainer.triton_kernels import has_kernels

SHAPES = [(6, 20), (8, 8), (20, 6), (6, 20), (8, 8), (6, 20), (1, 5), (6, 20)]

interpreted = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are interpreted only where there is no GPU"
)


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in SHAPES]


def steps(over=1.0, **options):
    """Three steps of all matrices, their gradients divided by `over`: weights and momenta."""
    weights, momenta = drawn(0), [torch.zeros(shape) for shape in SHAPES]
    for seed in range(1, 4):
        gradients = [gradient / over for gradient in drawn(seed)]
        muon_step(weights, gradients, momenta, learning_rate=0.02, weight_decay=0.1, **options)
    return [*weights, *momenta]


def one_by_one():
    weights, momenta = drawn(0), [torch.zeros(shape) for shape in SHAPES]
    for seed in range(1, 4):
        for each in zip(weights, drawn(seed), momenta, strict=True):
            muon_step(*([part] for part in each), learning_rate=0.02, weight_decay=0.1)
    return [*weights, *momenta]


@pytest.mark.parametrize("largest", [1, 250, 2**27])
def test_together_matrices_become_what_they_become_alone(monkeypatch, largest):
    monkeypatch.setattr(muon, "LARGEST_BATCH", largest)
    for found, expected in zip(steps(), one_by_one(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("largest", "sizes"), [(1, [1] * 8), (250, [2, 2, 2, 1, 1]), (2**27, [4, 2, 1, 1])])
def test_a_batch_is_of_one_shape_and_bounded(monkeypatch, largest, sizes):
    monkeypatch.setattr(muon, "LARGEST_BATCH", largest)
    batches = list(muon._batches(drawn(0)))
    assert sorted(number for batch in batches for number in batch) == list(range(len(SHAPES)))
    assert sorted(map(len, batches), reverse=True) == sizes
    assert all(len({SHAPES[number] for number in batch}) == 1 for batch in batches)


@interpreted
@pytest.mark.parametrize("skipped", [None, torch.tensor(False)], ids=["unguarded", "guarded"])
def test_kernels_step_as_torch_does(skipped):
    found = steps(skipped=skipped, kernels=Kernels(updates=True, products=True))
    for mine, expected in zip(found, steps(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("updates", [False, pytest.param(True, marks=interpreted)], ids=["torch", "kernels"])
def test_gradients_are_divided_as_they_are_read(updates):
    kernels = Kernels(updates=updates)
    found = steps(divisor=torch.tensor(3.7), kernels=kernels)
    for mine, expected in zip(found, steps(over=torch.tensor(3.7), kernels=kernels), strict=True):
        assert torch.equal(mine, expected)


@interpreted
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # by NumPy, which interprets
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_kernels_leave_a_skipped_step_out(poison):
    weights, gradients, momenta = drawn(0), drawn(1), drawn(2)
    for gradient in gradients:
        gradient[0, 3] = poison
    before = [tensor.clone() for tensor in (*weights, *momenta)]
    muon_step(
        weights,
        gradients,
        momenta,
        learning_rate=0.02,
        weight_decay=0.1,
        divisor=torch.tensor(poison),
        skipped=torch.tensor(True),
        kernels=Kernels(updates=True, products=True),
    )
    for found, expected in zip((*weights, *momenta), before, strict=True):
        assert torch.equal(found, expected)


@interpreted
@pytest.mark.parametrize("size", [(2, 40, 70), (3, 32, 16), (1, 5, 9)])
@pytest.mark.parametrize("transposed", [False, True])
def test_half_a_product_mirrored_is_the_whole(size, transposed):
    """Of tiles that fit and that do not, in one row of tiles and in several."""
    kernel = pytest.importorskip("bitnet_trainer.optim.kernels.symmetric")
    batch, side, depth = size
    torch.manual_seed(0)
    x = torch.randn(batch, depth, side).mT if transposed else torch.randn(*size)
    plus = self_product(torch.randn(batch, side, side))
    whole = 2 * x @ x.mT - 0.5 * plus + 3 * torch.eye(side)
    torch.testing.assert_close(self_product(x, plus, alpha=2.0, beta=-0.5, shift=3.0), whole)
    for tiles in (kernel.Tiles(side=16, depth=32), kernel.Tiles()):
        found = kernel.self_product(x, plus, alpha=2.0, beta=-0.5, shift=3.0, tiles=tiles)
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-4)
        alone = kernel.self_product(x, None, tiles=tiles)
        torch.testing.assert_close(alone, x @ x.mT, rtol=1e-5, atol=1e-4)
        assert torch.equal(alone, alone.mT)


def test_a_cpu_has_no_kernels():
    assert not has_kernels(torch.device("cpu"))
    assert Kernels.of(torch.device("cpu")) == Kernels()


@pytest.mark.parametrize(("rows", "columns"), [(6, 20), (20, 6), (8, 8)])
def test_operations_are_those_that_torch_counts(rows, columns):
    with FlopCounterMode(display=False) as counted:
        newton_schulz(torch.randn(3, rows, columns))
    assert counted.get_total_flops() == 3 * operations(rows, columns)
    short, long = sorted((rows, columns))
    saved = 5 * short**2 * (short + long)
    assert operations(rows, columns) - operations(rows, columns, symmetric=True) == saved


def test_triton_is_not_imported_before_it_is_used():
    uses = "bitnet_trainer.optim, bitnet_trainer.quantization.kept_codes"
    code = f"import sys, {uses}; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
