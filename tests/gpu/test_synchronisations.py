"""What the host waits for in a step on CUDA: nothing of ours."""

import warnings

import pytest
import torch

from one_step import MICRO_BATCHES, step_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["AdamW", "MuonClip"])
@pytest.mark.parametrize(
    ("architecture", "a_pass"),
    # transformers looks whether position_ids hold several documents, also where it made them itself.
    [("BitNetLlamaForCausalLM", 0), ("LlamaForCausalLM", 1)],
)
def test_a_step_waits_for_nothing(name: str, architecture: str, a_pass: int) -> None:
    take = step_of(name, architecture, torch.device("cuda"))
    take()
    with warnings.catch_warnings():
        # Of the mode itself torch warns once in a process.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("warn")
        torch.cuda.set_sync_debug_mode("default")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            losses = take()
            waited = len(said)
            losses.values[0].item()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [f"{warning.filename}:{warning.lineno}: {warning.message}" for warning in said]
    print("\n", *found, sep="\n")
    assert all("synchroniz" in line for line in found)
    assert waited == a_pass * MICRO_BATCHES
    assert len(said) == waited + 1
