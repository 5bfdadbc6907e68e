"""Kernels of quantisation beside their twins in torch, at sizes that fit tiles and do not."""

import pytest
import torch

from bitnet_trainer.errors import BadInput
from bitnet_trainer.quantization.codes import MINIMUM_SCALE
from bitnet_trainer.quantization.haar import haar_codes, haar_transform_1d_row, haar_weights
from bitnet_trainer.quantization.packing import pack_codes, pack_ternary, unpack_ternary, unpack_weights

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are interpreted only where there is no GPU"
)
SIZES = [(3, 5, 2), (2, 9, 12), (7, 1032), (2, 2, 4, 64)]


def drawn(size, dtype=torch.float32):
    return torch.randn(*size, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_the_bands_sums_are_those_of_the_transform(size, dtype):
    kernel = pytest.importorskip("bitnet_trainer.quantization.kernels.haar")
    weights = drawn(size, dtype)
    low, high = haar_transform_1d_row(weights.double()).abs().chunk(2, dim=-1)
    expected = torch.stack((low.sum((-2, -1)), high.sum((-2, -1))), dim=-1)
    for work in (kernel.WORK, kernel.Work(sum_pairs=16, sum_turns=2, rows=2)):
        found = kernel.band_sums(weights, work)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_codes_are_torchs_by_the_same_scale(size):
    """Bit for bit: which scale it is depends on the order of a sum, and is left out here."""
    kernel = pytest.importorskip("bitnet_trainer.quantization.kernels.haar")
    weights = drawn(size)
    inverses = 1 / (0.5 + torch.rand(*size[:-2], 2, generator=torch.Generator().manual_seed(1)))
    bands = haar_transform_1d_row(weights).chunk(2, dim=-1)
    by_band = [(band * inverses[..., n, None, None]).round().clamp(-1, 1) for n, band in enumerate(bands)]
    found = kernel.codes_of(weights, inverses, kernel.Work(rows=2))
    assert found.dtype == torch.int8
    assert torch.equal(found.float(), torch.cat(by_band, dim=-1))


def test_half_a_scale_is_rounded_to_even():
    kernel = pytest.importorskip("bitnet_trainer.quantization.kernels.haar")
    up = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)).item()
    ties = torch.tensor([0.5, up, -0.5, -up, 1.5, -1.5, 0.0, 1e9])
    root = torch.tensor(0.5).sqrt().item()
    found = kernel.codes_of(ties[:, None] * torch.tensor([1.0, 0.0]), torch.full((2,), 1 / root))
    assert found[:, 0].tolist() == (ties * root * (1 / root)).round().clamp(-1, 1).tolist()


@pytest.mark.parametrize("size", SIZES)
def test_haar_by_kernels_is_haar_by_torch(size):
    """Scales to the last places, codes but at a tie, and weights of the same codes bit for bit."""
    weights = drawn(size)
    codes, scales = haar_codes(weights, kernel=True)
    expected_codes, expected_scales = haar_codes(weights, kernel=False)
    torch.testing.assert_close(scales, expected_scales, rtol=1e-6, atol=0)
    half = size[-1] // 2
    exact = haar_transform_1d_row(weights) / expected_scales.repeat_interleave(half, dim=-1).unsqueeze(-2)
    at_a_tie = (exact.abs() - 0.5).abs() < 1e-6
    assert ((codes == expected_codes) | at_a_tie).all()
    for dtype in (torch.float32, torch.float16):  # the interpreter cuts bfloat16 off
        found = haar_weights(codes, scales, dtype, kernel=True)
        assert torch.equal(found, haar_weights(codes, scales, dtype, kernel=False))


def test_a_matrix_of_zeros_has_the_least_scale():
    for kernel in (True, False):
        codes, scales = haar_codes(torch.zeros(2, 4), kernel=kernel)
        assert not codes.any()
        torch.testing.assert_close(scales, torch.full((2,), MINIMUM_SCALE))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [*SIZES, (3, 7), (2, 1, 1031)])
def test_packed_by_a_kernel_is_packed_by_torch(size, dtype):
    codes = torch.randint(-1, 2, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    packed = pack_codes(codes, kernel=True)
    assert torch.equal(packed, pack_codes(codes, kernel=False))
    assert torch.equal(packed.flatten(0, -2), pack_ternary(codes.flatten(0, -2)))
    assert torch.equal(unpack_ternary(packed, size[-1]).to(dtype), codes)


@pytest.mark.parametrize("size", [*SIZES, (3, 7), (2, 1, 1031)])
def test_unpacked_by_a_kernel_is_unpacked_by_torch(size):
    codes = torch.randint(-1, 2, size, generator=torch.Generator().manual_seed(0))
    scales = 0.5 + torch.rand(size[:-2], generator=torch.Generator().manual_seed(1))
    packed = pack_codes(codes, kernel=False)
    for dtype in (torch.float32, torch.float16):  # the interpreter cuts bfloat16 off
        found = unpack_weights(packed, size[-1], scales, dtype, kernel=True)
        assert torch.equal(found, (codes * scales[..., None, None]).to(dtype))
        assert torch.equal(found, unpack_weights(packed, size[-1], scales, dtype, kernel=False))


@pytest.mark.parametrize("kernel", [True, False])
def test_sizes_that_are_none_are_refused(kernel):
    with pytest.raises(BadInput, match="a row of 7 values"):
        haar_codes(torch.zeros(2, 7), kernel=kernel)
    with pytest.raises(BadInput, match="a row of 7 values"):
        haar_weights(torch.zeros(2, 7, dtype=torch.int8), torch.ones(2), torch.float32, kernel=kernel)
    with pytest.raises(BadInput, match="rows of 2 bytes are not rows of 9 codes"):
        unpack_weights(torch.zeros(2, 2, dtype=torch.uint8), 9, torch.ones(()), torch.float32, kernel=kernel)
