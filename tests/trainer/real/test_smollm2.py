"""The engine on the real SmolLM2-135M: what conversion leaves or changes, and trap 5 with its figures."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bitnet_crds.objectives import Objectives
from bitnet_crds.spec import Quantization
from bitnet_trainer.batch import Rows, SequenceId
from bitnet_trainer.models.convert import ConversionReport, convert
from bitnet_trainer.models.load import LoadedModel
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.manager import ObjectiveManager, objectives_of
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.quantization.warmup import set_lambda
from measuring import perplexity

LAYERS = 30
SETTINGS = {
    "AbsMean": {},
    "Haar": {"weights": "Haar"},
    "low-rank correction": {"lowRankCorrection": {"ratio": 0.02, "init": "Kaiming"}},
    "SubLN before output projections": {"subLN": "OutputProjections"},
    "SubLN before all projections": {"subLN": "AllProjections"},
}


def converted(model: PreTrainedModel, name: str) -> tuple[PreTrainedModel, ConversionReport]:
    twin = copy.deepcopy(model)
    return twin, convert(twin, Quantization.model_validate(SETTINGS[name]))


@pytest.fixture(scope="session")
def published_perplexity(smollm2: LoadedModel, prose: Tensor) -> float:
    return perplexity(smollm2.model, prose).value


def test_at_lambda_0_it_is_the_published_model_but_with_sub_ln(
    smollm2: LoadedModel, prose: Tensor, published_perplexity: float
) -> None:
    """SubLN is not identity-preserving on a pretrained model; the report and the figures say so."""
    print(f"\npublished: perplexity {published_perplexity:.2f}")
    norms = {}
    for name in SETTINGS:
        model, report = converted(smollm2.model, name)
        set_lambda(model, 0.0)
        before = perplexity(model, prose).value
        set_lambda(model, 1.0)
        print(f"{name}: lambda 0 {before:.4g}, lambda 1 {perplexity(model, prose).value:.3g}")
        print(report)
        assert len(report.converted) == 7 * LAYERS
        assert report.left == ("lm_head",)
        norms[name] = len(report.norms)
        if name.startswith("SubLN"):
            assert abs(before / published_perplexity - 1) > 0.5
        else:
            assert before == pytest.approx(published_perplexity, abs=1e-3)
    assert list(norms.values()) == [0, 0, 0, 2 * LAYERS, 7 * LAYERS]


def loss_of(model: PreTrainedModel, rows: Rows, **named: dict[str, object]) -> Tensor:
    wanted = Objectives.model_validate(named)
    objectives = ObjectiveManager(
        objectives_of(wanted.named(), key_heads=3, mask_tokens={"<reponame>": 4}, seed=0)
    )
    weights = wanted.weights()
    normalisers = {name: float(n) for name, n in objectives.count([rows], weights).items()}
    batch = MicroBatch(LanguageModel(model), rows, torch.device("cpu"), layers=LAYERS)
    with torch.no_grad():
        return objectives(batch, weights, normalisers).total


def test_masked_diffusion_at_weight_0_is_plain_cross_entropy(smollm2: LoadedModel, prose: Tensor) -> None:
    """Trap 5, with its figures: masked for an objective of weight 0, cross-entropy was 9.73 and not 2.24."""
    model = smollm2.model
    rows = Rows.of(prose[:2], [SequenceId(0, 0, 0), SequenceId(0, 0, 1)])
    plain = model(input_ids=rows.input_ids, labels=rows.input_ids).loss
    omitted = loss_of(model, rows, crossEntropy={"weight": 1})
    diffusion = {"weight": 0, "maskToken": "<reponame>"}
    at_zero = loss_of(model, rows, crossEntropy={"weight": 1}, maskedDiffusion=diffusion)
    assert torch.equal(at_zero, omitted)
    torch.testing.assert_close(omitted, plain)

    # The old behaviour: one masked input for all.
    masked = rows.input_ids.masked_fill(torch.rand(rows.input_ids.shape) < 0.5, 4)
    old = model(input_ids=masked, labels=rows.input_ids).loss
    print(f"\ncross-entropy of the text {plain:.2f}, of masked text {old:.2f}")
    assert old > plain + 2
