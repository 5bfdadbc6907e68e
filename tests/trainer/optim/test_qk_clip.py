"""QK-clip: the largest logit afterwards is at most the threshold, and no head is scaled for another."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_crds.spec import Quantization
from bitnet_trainer.errors import BadInput
from bitnet_trainer.models.convert import convert
from bitnet_trainer.optim.qk_clip import AttentionHeads, clip_factors, shared_out
from bitnet_trainer.optimizer import attention_heads, build_muonclip
from bitnet_trainer.quantization.schemes import SCHEMES
from bitnet_trainer.quantization.warmup import set_lambda
from families import VOCABULARY, small_model

FAMILIES = {
    "MHA": ("LlamaForCausalLM", {"num_key_value_heads": 4}),
    "GQA": ("LlamaForCausalLM", {}),
    "MQA": ("GemmaForCausalLM", {"num_key_value_heads": 1}),
    "biases": ("Qwen2ForCausalLM", {}),
    "QK-norm": ("Qwen3ForCausalLM", {}),
    "QK-norm of 1 + gain": ("Gemma3ForCausalLM", {}),
    "ours": ("BitNetLlama", {}),
}
TOKENS = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))


def clipping(family, threshold, alpha=0.5):
    """A model in training, and its optimiser at a learning rate of 0, so that a step clips and no more."""
    architecture, changes = FAMILIES[family]
    model = small_model(architecture, **changes).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "q_norm.weight", "k_norm.weight")):
                parameter += 0.3 * torch.randn_like(parameter)
    optimizer = build_muonclip(
        model,
        muon_learning_rate=0.1,
        adam_learning_rate=0.1,
        weight_decay=0.1,
        threshold=threshold,
        alpha=alpha,
    )
    return model, optimizer


def measured(model, optimizer):
    """The largest logits of TOKENS, (L, H)."""
    optimizer.zero_grad()
    model(TOKENS)
    return optimizer._clip._maxima.values.clone()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_largest_logit_afterwards_is_at_most_the_threshold(family, alpha):
    """Half of the heads are over it. Without QK-norm each of them lands on it, and the others stay."""
    before = measured(*clipping(family, 1.0))
    # The upper layer sees what the lower puts out, so each is looked at with the other left alone.
    for number in range(2):
        threshold = before[number].median().item()
        model, optimizer = clipping(family, threshold, alpha)
        other = 1 - number
        optimizer._clip._layers = tuple(
            layer if index == number else AttentionHeads((), (), 1, normed=True)
            for index, layer in enumerate(optimizer._clip._layers)
        )
        found = measured(model, optimizer)
        assert (found[number] > threshold).any()
        optimizer.step()
        after = measured(model, optimizer)
        factors = clip_factors(found[number], threshold)
        if "norm" in family:
            factors = factors.amin().expand_as(factors)
        torch.testing.assert_close(after[number], found[number] * factors, rtol=1e-4, atol=1e-5)
        assert (after[number] <= threshold * (1 + 1e-5)).all()
        if other < number:
            assert torch.equal(after[other], found[other])


@pytest.mark.parametrize("family", FAMILIES)
def test_both_layers_together_come_under_the_threshold(family):
    """In a few steps, since what the upper layer sees changes with the lower one."""
    model, optimizer = clipping(family, 1.0)
    threshold = optimizer._clip._threshold = measured(model, optimizer).max().item() / 3
    for _ in range(10):
        measured(model, optimizer)
        optimizer.step()
    assert (measured(model, optimizer) <= threshold * (1 + 1e-5)).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("largest", [-math.inf, -7.0, 0.0, 0.9, 1.0, math.inf, math.nan])
def test_what_is_not_over_the_threshold_changes_no_bit(family, largest):
    """Trap 11: a negative maximum gave NaN."""
    model, optimizer = clipping(family, 1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer._clip._maxima.values.fill_(largest)
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skipped_step_clips_nothing(family):
    model, optimizer = clipping(family, 1e-3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    largest = measured(model, optimizer)
    over = int((largest > 1e-3).sum())
    assert over
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert optimizer.attention_figures.tolist() == [largest.max().item(), 0]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert optimizer.attention_figures.tolist() == [largest.max().item(), over]
    assert not all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@given(st.floats(width=32), st.floats(2**-10, 2**10, width=32))
def test_factors(largest, threshold):
    factor = clip_factors(torch.tensor([largest]), threshold).item()
    assert 0 < factor <= 1 or largest > 1e30
    if math.isfinite(largest) and largest > threshold:
        assert factor == pytest.approx(threshold / largest, rel=1e-6)
    else:
        assert factor == 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(1e-3, 1), min_size=1, max_size=4),
    st.integers(1, 3),
    st.floats(0, 1),
)
def test_each_heads_product_is_its_own_factor(by_key, groups, alpha):
    factors = torch.tensor(by_key).repeat_interleave(groups)
    factors[::2] = factors[::2].sqrt()
    queries, keys = shared_out(factors, len(by_key), alpha)
    products = queries * keys.repeat_interleave(groups)
    torch.testing.assert_close(products, factors)
    smallest = factors.view(len(by_key), groups).amin(dim=1)
    torch.testing.assert_close(keys, smallest ** (1 - alpha))
    if groups == 1:
        torch.testing.assert_close(queries, factors**alpha)


def test_a_ternary_matrix_passes_on_less_and_moves_other_heads():
    """What the docstring states, measured: 9 heads of 64 channels, one of them scaled by 0.7."""
    torch.manual_seed(0)
    weight = 0.02 * torch.randn(9 * 64, 576)
    clipped = weight.clone()
    clipped[:64] *= 0.7
    absmean = SCHEMES["AbsMean"]
    inputs = torch.randn(256, 576)
    before, after = (inputs @ absmean.dequantize(*absmean.quantize(w)).T for w in (weight, clipped))
    changed = absmean.quantize(weight)[0] != absmean.quantize(clipped)[0]
    print(f"codes changed: {changed[64:].double().mean():.4f} of the others")
    assert changed[64:].double().mean() == pytest.approx(0.01, abs=0.003)
    for heads, factor in ((slice(64), 0.81), (slice(64, None), 0.97)):
        own = (before[:, heads] * after[:, heads]).sum() / before[:, heads].square().sum()
        print(f"what comes out is {own:.3f} times what it was")
        assert own.item() == pytest.approx(factor, abs=0.015)


@pytest.mark.parametrize("family", ["GQA", "QK-norm", "ours"])
def test_quantised_heads_come_under_the_threshold_in_steps(family):
    model, optimizer = clipping(family, 1.0)
    convert(model, Quantization())
    model.train()
    set_lambda(model, 1.0)
    threshold = optimizer._clip._threshold = measured(model, optimizer).max().item() / 2
    for _ in range(40):
        measured(model, optimizer)
        optimizer.step()
    assert (measured(model, optimizer) <= threshold * 1.02).all()


def test_a_norm_of_unknown_gain_is_refused():
    model = small_model("Qwen3ForCausalLM")
    model.model.layers[1].self_attn.q_norm = torch.nn.LayerNorm(8)
    with pytest.raises(BadInput, match=r"how LayerNorm norms queries is not known.*Write `name: AdamW`"):
        attention_heads(model)


RANKED = ("LlamaForCausalLM", "Qwen3ForCausalLM")
RANK = """
import sys, torch, torch.distributed as dist
from families import VOCABULARY, small_model
from bitnet_trainer.optimizer import build_muonclip

def clipped(family, rank, world):
    model = small_model(family).train()
    optimizer = build_muonclip(
        model, muon_learning_rate=0.1, adam_learning_rate=0.1, weight_decay=0.0, threshold=0.5, alpha=0.5
    )
    tokens = torch.randint(VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(0))
    optimizer.zero_grad()
    model(tokens[rank::world])
    optimizer.step()
    return model.state_dict()

if __name__ == "__main__":
    rank, folder, *families = int(sys.argv[1]), *sys.argv[2:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save([clipped(family, rank, 2) for family in families], f"{folder}/{rank}.pt")
    dist.destroy_process_group()
"""


def test_two_ranks_clip_by_one_maximum(tmp_path):
    """Trap 11: QK-clip absent on several GPUs. Each rank sees other rows; both end as one that sees all."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path), *RANKED],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for rank in range(2)
    ]
    assert [process.wait(180) for process in ranks] == [0, 0]
    alone: dict[str, object] = {}
    exec(RANK, alone)  # the same, in one process
    for family, *two in zip(RANKED, *(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True):
        one, untouched = alone["clipped"](family, 0, 1), small_model(family).state_dict()
        assert any(not torch.equal(untouched[name], value) for name, value in one.items())
        for name, value in one.items():
            torch.testing.assert_close(two[0][name], value, rtol=1e-5, atol=1e-6)
            assert torch.equal(two[0][name], two[1][name])
