"""Ways to take a step that the trainer does not have: what they are worth is to be measured first."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from bitnet_trainer.quantization import int8_training

WIDE_OPTIONS = {"triton.multi_kernel": 1}
"""Inductor then also tries reductions that hold a row of up to 16,384 values, and takes what is faster."""


@contextmanager
def quantised_where_made() -> Iterator[None]:
    """Inside, the compiler quantises wide tokens too in the pass that makes them, such as a gate."""
    with patch.object(int8_training, "_FUSED_WIDTH", 1 << 20):
        yield
