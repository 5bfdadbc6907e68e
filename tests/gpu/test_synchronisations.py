"""What the host waits for in a step on CUDA: nothing of ours."""

import warnings

import pytest
import torch

from one_step import step_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["AdamW", "MuonClip"])
@pytest.mark.parametrize("architecture", ["BitNetLlamaForCausalLM", "LlamaForCausalLM"])
@pytest.mark.parametrize("documents", [False, True])
def test_a_step_waits_for_nothing(name: str, architecture: str, documents: bool) -> None:
    take = step_of(name, architecture, torch.device("cuda"), documents=documents)
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
            waited = [f"{warning.filename}:{warning.lineno}: {warning.message}" for warning in said]
            losses.values[0].item()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert waited == []
    assert ["synchroniz" in str(warning.message) for warning in said] == [True]
