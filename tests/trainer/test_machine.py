"""What steps cost: FLOPs a token, the GPUs' peak, utilisation, memory."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bitnet_crds.protocol import MachineProgress
from bitnet_trainer.machine import Machine, flops_a_token, multiplied_weights, peak_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA L4", 121e12),
        # Slower than their namesakes, or not known at all.
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA L40S", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_a_device_has_the_peak_of_its_own_name_or_none(name, peak):
    assert peak_flops(name) == peak


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_formula_counts_what_torch_counts(make_model, tied, frozen):
    """Against torch's own counter, in a forward and backward pass over hidden states that ask a gradient."""
    model = make_model(tie_word_embeddings=tied).train()
    model.set_attn_implementation("eager")  # the counter knows no fused attention on the CPU
    batch, length = 2, 12
    if frozen:
        model.requires_grad_(False)
    trained_weights, frozen_weights = multiplied_weights(model)
    assert (trained_weights == 0) is frozen
    embedded = torch.randn(batch, length, 32, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embedded, use_cache=False).logits.sum().backward()
    expected = flops_a_token(
        trained=trained_weights, frozen=frozen_weights, layers=2, attention_width=32, sequence_length=length
    )
    assert counter.get_total_flops() == pytest.approx(batch * length * expected, rel=0.02)


def machine(peak: float | None) -> Machine:
    return Machine(torch.device("cpu"), tokens_per_step=1000, flops_a_token=6e9, peak_flops=peak)


def test_utilisation_is_of_the_passes_that_the_objectives_take():
    one = machine(1e15).figures(50_000, ("crossEntropy", "teacherLogits"))
    assert one.model_flops_utilization == pytest.approx(0.3)
    assert one.step_seconds == pytest.approx(0.02)
    two = machine(1e15).figures(50_000, ("crossEntropy", "maskedDiffusion"))
    assert two.model_flops_utilization == pytest.approx(0.6)
    masked_alone = machine(1e15).figures(50_000, ("maskedDiffusion",))
    assert masked_alone.model_flops_utilization == pytest.approx(0.3)


def test_what_is_not_known_is_not_told():
    assert machine(None).figures(50_000, ("crossEntropy",)).model_flops_utilization is None
    nothing = machine(1e15).figures(None, ("crossEntropy",))
    assert nothing.host_peak_bytes > 50_000_000
    assert nothing.model_copy(update={"host_peak_bytes": None}) == MachineProgress()
