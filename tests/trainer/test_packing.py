"""Packing: any codes of any width come back, in a quarter of a byte each, laid out as stated."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet_trainer.errors import BadInput
from bitnet_trainer.quantization.packing import pack_ternary, unpack_ternary

matrices = st.integers(1, 19).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(-1, 1), min_size=width, max_size=width), min_size=1, max_size=5
    )
)
dtypes = st.sampled_from([torch.int8, torch.int64, torch.float32, torch.bfloat16])


@given(matrices, dtypes)
def test_codes_of_any_width_come_back(rows: list[list[int]], dtype: torch.dtype) -> None:
    codes = torch.tensor(rows, dtype=dtype)
    packed = pack_ternary(codes)
    width = len(rows[0])
    assert packed.dtype == torch.uint8
    assert packed.shape == (len(rows), (width + 3) // 4)
    found = unpack_ternary(packed, width)
    assert found.dtype == torch.int8
    assert found.tolist() == rows


@given(matrices)
def test_a_byte_is_base_four_with_the_first_code_lowest(rows: list[list[int]]) -> None:
    for row, found in zip(rows, pack_ternary(torch.tensor(rows)).tolist(), strict=True):
        for place, byte in enumerate(found):
            four = row[4 * place : 4 * place + 4]
            assert byte == sum((code + 1) * 4**digit for digit, code in enumerate(four))


@pytest.mark.parametrize("stranger", [2.0, 0.5, -3.0, float("nan")])
def test_what_is_no_code_is_refused(stranger: float) -> None:
    with pytest.raises(BadInput, match=f"{stranger} is no ternary code"):
        pack_ternary(torch.tensor([[0.0, stranger]]))


@pytest.mark.parametrize("width", [4, 9])
def test_another_width_is_refused(width: int) -> None:
    with pytest.raises(BadInput, match=f"rows of 2 bytes are not rows of {width} codes"):
        unpack_ternary(pack_ternary(torch.zeros(3, 7)), width)
