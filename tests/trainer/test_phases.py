"""Which objectives a phase is made ready for: those with weight in some step of it, and nothing else."""

from typing import Any

import pytest

from bitnet_crds.plan import plan
from bitnet_crds.spec import BitNetRunSpec
from bitnet_trainer.batch import Rows, SequenceId
from bitnet_trainer.errors import BadInput
from bitnet_trainer.models.load import LoadedModel
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.masked_diffusion import MaskedDiffusionObjective
from bitnet_trainer.objectives.teacher_logits import TeacherLogitsObjective
from bitnet_trainer.phases import phase_objectives

ONE = {"weight": 1}
NONE = {"weight": 0}


def spec_of(*phases: dict[str, Any], transition: int | None = None) -> BitNetRunSpec:
    """Ten steps in two phases, or one."""
    named = [
        {"name": f"phase{number}", "until": f"{100 * number // len(phases)}%", "objectives": objectives}
        for number, objectives in enumerate(phases, start=1)
    ]
    if transition is not None:
        named[-1]["transition"] = {"steps": transition}
    asks = any("teacherLogits" in phase and phase["teacherLogits"]["weight"] for phase in phases)
    return BitNetRunSpec.model_validate(
        {
            "model": {"from": "file:///model"},
            "data": {
                "sequenceLength": 16,
                "sources": [{"name": "text", "uri": "file:///t.txt", "weight": 1}],
            },
            "budget": {"tokens": 320, "globalBatchSize": 2},
            "phases": named,
            "teacher": {"from": "file:///teacher"} if asks else None,
            "workers": {"microBatchSize": 2, "gpusPerWorker": 0},
            "checkpoint": {"uri": "file:///runs"},
        }
    )


@pytest.fixture
def ready(make_model, tokenizer):
    """Makes a run's phases ready, for a model of 2 layers whose tokenizer has no mask token."""
    loaded = LoadedModel(make_model(), tokenizer, "model")
    return lambda spec: phase_objectives(spec, loaded, LanguageModel(loaded.model))


def counts(ready, spec, step, sequences):
    """Terms by objective in a step, which is asked as the loop asks."""
    rows = Rows.of(sequences, [SequenceId(0, 0, row) for row in range(len(sequences))])
    ledger = plan(spec)
    return ready(spec)[ledger.phase_at(step).name].manager.count([rows], ledger.weights_at(step))


@pytest.mark.parametrize(
    "idle",
    [
        {"maskedDiffusion": NONE},
        {"maskedDiffusion": {**NONE, "maskToken": "<gone>"}},
        {"maskedDiffusion": NONE, "teacherLogits": {**NONE, "input": "Masked"}},
        {"attentionRelations": {**NONE, "layer": 7}},
        {"hiddenStates": {**NONE, "layerWeights": [1, 1, 1]}},
    ],
)
def test_nothing_is_asked_of_the_model_for_an_objective_of_weight_0(ready, sequences, idle):
    """Trap 5: weight 0 leaves an objective out, with all that prepares for it, as not naming it does."""
    spec = spec_of({"crossEntropy": ONE, **idle})
    assert counts(ready, spec, 0, sequences) == {"crossEntropy": 6 * 11}


def test_one_that_fades_out_needs_its_mask_token_and_one_that_is_gone_does_not(ready, sequences):
    masked = {"maskedDiffusion": {**ONE, "maskToken": "w60"}}
    later = {"crossEntropy": ONE, "maskedDiffusion": {**NONE, "maskToken": "<gone>"}}
    assert set(counts(ready, spec_of(masked, later), 5, sequences)) == {"crossEntropy"}
    # While it fades the later phase's settings hold.
    with pytest.raises(BadInput, match=r"phases\[1\].*maskToken.*'<gone>'"):
        ready(spec_of(masked, later, transition=3))
    fading = spec_of(masked, {"crossEntropy": ONE}, transition=3)
    assert set(counts(ready, fading, 5, sequences)) == {"crossEntropy", "maskedDiffusion"}
    assert set(counts(ready, fading, 7, sequences)) == {"crossEntropy"}


@pytest.mark.parametrize("transition", [None, 3])
def test_masked_distillation_needs_the_masking_and_not_its_weight(ready, sequences, transition):
    distilled = {
        "crossEntropy": ONE,
        "maskedDiffusion": {**NONE, "maskToken": "w60", "maskProbability": 0.9},
        "teacherLogits": {**ONE, "input": "Masked"},
    }
    spec = spec_of(distilled, {"crossEntropy": ONE}, transition=transition)
    phases = ready(spec)
    masked = phases["phase1"].manager._objectives
    assert isinstance(masked["maskedDiffusion"], MaskedDiffusionObjective)
    assert isinstance(masked["teacherLogits"], TeacherLogitsObjective)
    assert masked["teacherLogits"].masking == masked["maskedDiffusion"].masking
    assert masked["teacherLogits"].masking.mask_token == 60
    fades = transition is not None
    assert ("teacherLogits" in counts(ready, spec, 5, sequences)) == fades
    del distilled["maskedDiffusion"]["maskToken"]
    with pytest.raises(BadInput, match=r"phases\[0\].*no mask token"):
        ready(spec_of(distilled, {"crossEntropy": ONE}))
