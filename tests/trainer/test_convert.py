"""Conversion: what it converts and leaves, what it adds and trains, what it says of it, what it refuses."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from bitnet_crds.spec import LowRankCorrection, Quantization
from bitnet_trainer.errors import BadInput
from bitnet_trainer.models.convert import ARCHITECTURES, convert
from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.warmup import set_lambda
from families import ARCHITECTURES as TESTED
from families import TRANSFORMERS_ARCHITECTURES, loss_of, small_model

every_architecture = pytest.mark.parametrize("architecture", TESTED)
without_sub_ln = pytest.mark.parametrize("architecture", TRANSFORMERS_ARCHITECTURES)
LOW_RANK = Quantization(low_rank_correction=LowRankCorrection(ratio=0.1))


def head_of(architecture: str) -> str:
    return "score" if architecture.endswith("Classification") else "lm_head"


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_every_known_architecture_is_tested() -> None:
    assert set(ARCHITECTURES) == set(TESTED)


@every_architecture
def test_every_projection_is_converted_and_every_linear_named(architecture) -> None:
    model = small_model(architecture)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    report = convert(model)
    assert report.left == (head_of(architecture),)
    assert sorted((*report.converted, *report.left)) == sorted(linears)
    assert len(report.converted) == 2 * 7
    found = [name for name, module in model.named_modules() if isinstance(module, BitLinear)]
    assert tuple(found) == report.converted


@every_architecture
def test_at_lambda_0_the_model_is_the_original_bit_for_bit(architecture, sequences) -> None:
    original, model = small_model(architecture), small_model(architecture)
    convert(model)
    with torch.no_grad():
        expected = original(sequences).logits
        assert torch.equal(model(sequences).logits, expected)
        set_lambda(model, 1.0)
        assert not torch.allclose(model(sequences).logits, expected)


@every_architecture
def test_a_step_changes_every_converted_weight_and_the_loss_falls(architecture, sequences) -> None:
    model = small_model(architecture)
    report = convert(model)
    set_lambda(model, 1.0)
    before = weights_of(model)
    loss = loss_of(model, sequences)
    loss.backward()
    # So small a step that no ternary code has reason to turn.
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    torch.optim.SGD(model.parameters(), lr=0.05 / norm.item()).step()
    for name in report.converted:
        weight = model.get_submodule(name).weight
        assert weight.isfinite().all(), name
        assert not torch.equal(weight, before[f"{name}.weight"]), name
    assert loss_of(model, sequences) < loss


@every_architecture
def test_positions_of_each_sequence_are_the_generated_ones(architecture, sequences) -> None:
    """Trap 14: position_ids of shape (B, S). Shifted ones show that they are looked at."""
    model = small_model(architecture)
    convert(model)
    set_lambda(model, 1.0)
    positions = torch.arange(sequences.shape[1]).expand(sequences.shape).clone()
    with torch.no_grad():
        expected = model(sequences).logits
        torch.testing.assert_close(model(sequences, position_ids=positions).logits, expected)
        positions[0] = 3 * positions[0]
        found = model(sequences, position_ids=positions).logits
    assert not torch.allclose(found[0], expected[0], atol=1e-3)
    torch.testing.assert_close(found[1:], expected[1:])


@every_architecture
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_head_stay_and_parameters_are_the_same_objects(architecture, tied) -> None:
    model = small_model(architecture, tie_word_embeddings=tied)
    before = dict(model.named_parameters())
    names = list(model.state_dict())
    convert(model)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert list(model.state_dict()) == names
    head = model.get_submodule(head_of(architecture))
    assert type(head) is nn.Linear
    embeddings = model.get_input_embeddings().weight
    assert (head.weight is embeddings) == (tied and head_of(architecture) == "lm_head")


def test_one_lambda_for_the_whole_model() -> None:
    model = small_model()
    report = convert(model)
    assert len({id(model.get_submodule(name).lam) for name in report.converted}) == 1


def test_lambda_is_where_the_weights_are() -> None:
    """Elsewhere it would say that the device has no kernels, and a run on a GPU would have none of them."""
    model = small_model().to("meta")
    report = convert(model)
    assert model.get_submodule(report.converted[0]).lam.value.device.type == "meta"


def test_haar_weights_are_the_scheme_of_every_converted_layer(sequences) -> None:
    absmean, haar = small_model(), small_model()
    convert(absmean)
    report = convert(haar, Quantization(weights="Haar"))
    assert {haar.get_submodule(name).scheme for name in report.converted} == {"Haar"}
    with torch.no_grad():
        assert torch.equal(haar(sequences).logits, absmean(sequences).logits)
        for model in (haar, absmean):
            set_lambda(model, 1.0)
        assert not torch.allclose(haar(sequences).logits, absmean(sequences).logits)


def test_haar_refuses_an_odd_width_by_the_layers_name_and_leaves_the_model_alone() -> None:
    model = small_model(intermediate_size=47)
    with pytest.raises(BadInput, match=r"model\.layers\.0\.mlp\.down_proj has rows of 47 values"):
        convert(model, Quantization(weights="Haar"))
    assert not any(isinstance(module, BitLinear) for module in model.modules())


@without_sub_ln
@pytest.mark.parametrize(("sub_ln", "ends"), [("OutputProjections", 2), ("AllProjections", 7)])
def test_sub_ln_is_where_it_was_asked_for(architecture, sub_ln, ends) -> None:
    model = small_model(architecture, rms_norm_eps=1e-3)
    report = convert(model, Quantization(sub_ln=sub_ln))
    found = [name for name, module in model.named_modules() if isinstance(module, nn.RMSNorm)]
    assert report.norms == tuple(found)
    assert len(found) == 2 * ends
    if sub_ln == "OutputProjections":
        assert {".".join(name.split(".")[-3:]) for name in found} == {
            "self_attn.o_proj.rms_norm",
            "mlp.down_proj.rms_norm",
        }
    for name in found:
        norm = model.get_submodule(name)
        assert norm.eps == 1e-3
        assert norm.weight.requires_grad
        assert torch.equal(
            norm.weight, torch.ones(model.get_submodule(name[: -len(".rms_norm")]).in_features)
        )


@pytest.mark.parametrize("sub_ln", ["OutputProjections", "AllProjections"])
@pytest.mark.parametrize("architecture", sorted(set(TESTED) - set(TRANSFORMERS_ARCHITECTURES)))
def test_an_architecture_that_has_sub_ln_gets_no_second_one(architecture, sub_ln) -> None:
    model = small_model(architecture)
    with pytest.raises(BadInput, match=f"subLN is {sub_ln}, and {architecture} has .* write subLN: None"):
        convert(model, Quantization(sub_ln=sub_ln))
    assert not any(isinstance(module, BitLinear) for module in model.modules())


def test_sub_ln_changes_what_a_pretrained_model_computes(sequences) -> None:
    original, model = small_model(), small_model()
    convert(model, Quantization(sub_ln="OutputProjections"))
    assert not torch.allclose(model(sequences).logits, original(sequences).logits)


@every_architecture
@pytest.mark.parametrize("init", ["Residual", "Kaiming"])
def test_a_correction_is_all_that_trains_of_what_was_there(architecture, init, sequences) -> None:
    """Trap 12: factors that are both zero never have a gradient."""
    model = small_model(architecture)
    before = weights_of(model)
    quantization = Quantization(low_rank_correction=LowRankCorrection(ratio=0.1, init=init))
    report = convert(model, quantization)
    set_lambda(model, 1.0)
    new = {"score.weight"} & set(before)
    frozen = {name: weight for name, weight in before.items() if name not in new}
    corrections = {name: p for name, p in model.named_parameters() if name not in frozen}
    assert len(corrections) == 2 * 2 * 7 + len(new)
    started = {name: parameter.detach().clone() for name, parameter in corrections.items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, sequences).backward()
        optimizer.step()
    for name, parameter in corrections.items():
        assert parameter.grad.abs().max() > 0, name
        assert not torch.equal(parameter, started[name]), name
    after = weights_of(model)
    assert all(torch.equal(after[name], weight) for name, weight in frozen.items())
    assert report.ranks == dict.fromkeys(report.converted, 3) | {
        name: 1 for name in report.converted if name.endswith(("k_proj", "v_proj"))
    }
    assert report.trained == sum(parameter.numel() for parameter in corrections.values())
    assert report.frozen == sum(weight.numel() for weight in frozen.values())


def test_beside_a_correction_all_that_is_new_trains() -> None:
    """SubLN's gains, and a classifier's score, which is random and could learn nothing if it were frozen."""
    model = small_model("LlamaForSequenceClassification")
    quantization = LOW_RANK.model_copy(update={"sub_ln": "OutputProjections"})
    report = convert(model, quantization)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    factors = {f"{name}.low_rank.{factor}" for name in report.converted for factor in "uv"}
    assert trained == factors | {f"{name}.weight" for name in report.norms} | {"score.weight"}
    assert report.trained == sum(model.get_parameter(name).numel() for name in trained)


@pytest.mark.parametrize("weights", ["AbsMean", "Haar"])
def test_a_residual_correction_is_of_the_schemes_own_residual(weights) -> None:
    """With the whole rank it undoes quantisation of the weights."""
    model = small_model()
    quantization = Quantization(weights=weights, low_rank_correction=LowRankCorrection(ratio=1))
    report = convert(model, quantization)
    set_lambda(model, 1.0)
    for name in report.converted:
        layer = model.get_submodule(name)
        mended = layer.effective_weight() + layer.low_rank.u @ layer.low_rank.v.T
        torch.testing.assert_close(mended, layer.weight, atol=1e-5, rtol=0)


def test_at_lambda_0_a_correction_leaves_the_model_the_original(sequences) -> None:
    original, model = small_model(), small_model()
    convert(model, LOW_RANK)
    with torch.no_grad():
        assert torch.equal(model(sequences).logits, original(sequences).logits)


def test_the_report_is_readable() -> None:
    quantization = Quantization(
        weights="Haar", sub_ln="OutputProjections", low_rank_correction=LowRankCorrection(ratio=0.1)
    )
    report = convert(small_model(), quantization)
    lines = str(report).splitlines()
    assert lines[0].startswith("14 linears became BitLinears (Haar): model.layers.*.self_attn.q_proj (2), ")
    assert lines[1] == "1 left in full precision: lm_head"
    assert lines[2] == (
        "4 norms added (SubLN): model.layers.*.self_attn.o_proj.rms_norm (2), "
        "model.layers.*.mlp.down_proj.rms_norm (2)"
    )
    assert lines[3].startswith("14 low-rank corrections: model.layers.*.self_attn.q_proj of rank 3 (2)")
    assert lines[4] == f"{report.trained:,} parameters trained, {report.frozen:,} frozen"
    plain = str(convert(small_model()))
    assert len(plain.splitlines()) == 3


def test_an_unknown_architecture_is_refused_and_the_known_ones_are_named() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=10))
    with pytest.raises(BadInput) as error:
        convert(model)
    assert "GPT2LMHeadModel" in str(error.value)
    assert all(name in str(error.value) for name in ARCHITECTURES)


def test_converting_nothing_is_an_error() -> None:
    model = small_model()
    model.model.layers = nn.ModuleList()
    with pytest.raises(BadInput, match=r"no linear .* was converted.* lm_head"):
        convert(model)


def test_a_second_conversion_is_refused() -> None:
    model = small_model()
    convert(model)
    with pytest.raises(BadInput, match=r"q_proj is a BitLinear, not a plain linear"):
        convert(model)
