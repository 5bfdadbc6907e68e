"""The kernels over rows of logits, compiled for the card, beside their twins in float64."""

import pytest
import torch

from bitnet_trainer.objectives.kernels import rows

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [61, 8192, 50_257, 151_936])
@pytest.mark.parametrize("aligned", [True, False])
def test_kernels_are_their_twins(vocabulary: int, dtype: torch.dtype, aligned: bool) -> None:
    torch.manual_seed(0)
    width = vocabulary + (-vocabulary % 64 if aligned else 3)
    own, goal = (4 * torch.randn(2, 40, width, device="cuda")).to(dtype)[..., :vocabulary].unbind()
    goal[0, vocabulary // 2 :] = own[1, : vocabulary // 2] = goal[1, : vocabulary // 2] = -torch.inf
    own[2, vocabulary - 1] = torch.nan
    apart, mass, tail = torch.rand(3, 40, device="cuda").unbind()
    pull = rows.Pull(apart + 10, mass, tail / 9)
    exact = rows.Pull(*(part.double() for part in pull))
    for kernel, twin in (
        (lambda x: rows.log_sums(x, 2.0, pull), lambda x: rows.log_sums(x, 2.0, exact)),
        (
            lambda x: rows.divergences(x, goal, 2.0, mass),
            lambda x: rows.divergences(x, goal.double(), 2.0, mass.double()),
        ),
    ):
        written, expected = own.clone(), own.double()
        near = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}
        torch.testing.assert_close(kernel(written), twin(expected).float(), **near)
        torch.testing.assert_close(written, expected.to(dtype), rtol=1e-2, atol=1e-6, equal_nan=True)
