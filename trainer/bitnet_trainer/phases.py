"""The objectives of each phase of a run, made ready before the first step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from bitnet_crds.objectives import BalancedObjective, MaskedDiffusion, Objective, TeacherLogits
from bitnet_crds.spec import BitNetRunSpec
from bitnet_trainer.errors import BadInput
from bitnet_trainer.models.load import LoadedModel
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.manager import ObjectiveManager, objectives_of


@dataclass(frozen=True)
class PhaseObjectives:
    """What one phase minimises."""

    manager: ObjectiveManager
    balanced: frozenset[str]
    """Those whose weight is a ratio of gradients."""


def phase_objectives(
    spec: BitNetRunSpec, loaded: LoadedModel, student: LanguageModel
) -> dict[str, PhaseObjectives]:
    """The objectives of each phase by its name: those that have weight in some step of it.

    Raises BadInput where a mask token is not to be had, or an objective speaks of a layer that is not there.
    """
    needed = [_needed(spec, index) for index in range(len(spec.phases))]
    mask_tokens = _mask_tokens(needed, loaded)
    phases: dict[str, PhaseObjectives] = {}
    for phase, named in zip(spec.phases, needed, strict=True):
        objectives = objectives_of(
            named, key_heads=student.key_heads, mask_tokens=mask_tokens, seed=spec.seed
        )
        manager = ObjectiveManager(objectives)
        # Said now, and not at the step where the phase begins.
        manager.capture(dict.fromkeys(named, 1.0), student.layers)
        phases[phase.name] = PhaseObjectives(manager, _balanced(named))
    return phases


def _needed(spec: BitNetRunSpec, index: int) -> Mapping[str, Objective]:
    """The objectives that have weight in a phase, and maskedDiffusion where it masks for one of them."""
    weighted = spec.objectives_in(index)
    distilled = weighted.get("teacherLogits")
    if not isinstance(distilled, TeacherLogits) or distilled.input == "Clean":
        return weighted
    # One that fades out of the phase before takes its masking along.
    maskings = (phase.objectives.masked_diffusion for phase in reversed(spec.phases[: index + 1]))
    return {"maskedDiffusion": next(masking for masking in maskings if masking is not None), **weighted}


def _balanced(named: Mapping[str, Objective]) -> frozenset[str]:
    return frozenset(
        name
        for name, objective in named.items()
        if isinstance(objective, BalancedObjective) and objective.weighting == "GradientRatio"
    )


def _mask_tokens(needed: Sequence[Mapping[str, Objective]], loaded: LoadedModel) -> Mapping[str, int]:
    """The id of each mask token that the run's phases need; of the tokenizer's own under ""."""
    asked = {
        (index, diffusion.mask_token or "")
        for index, named in enumerate(needed)
        if isinstance(diffusion := named.get("maskedDiffusion"), MaskedDiffusion)
    }
    known = len(loaded.model.get_input_embeddings().get_parameter("weight"))
    tokens: dict[str, int] = {}
    for index, name in sorted(asked):
        field = f"spec.phases[{index}].objectives.maskedDiffusion.maskToken"
        number = loaded.tokenizer.get_vocab().get(name) if name else loaded.tokenizer.mask_token_id
        if number is None:
            missing = f"the vocabulary has no token {name!r}" if name else "the tokenizer has no mask token"
            spare = ", ".join(_spare_tokens(loaded.tokenizer)) or "it lists none"
            raise BadInput(
                f"{field}: {missing}. Write a token that the vocabulary has and the text does not use, such "
                f"as a special one without a duty ({spare})."
            )
        if number >= known:
            raise BadInput(
                f"{field}: token {number} has no embedding, since the model knows {known} tokens. "
                "Write another token."
            )
        tokens[name] = int(number)
    return tokens


def _spare_tokens(tokenizer: PreTrainedTokenizerBase, at_most: int = 8) -> list[str]:
    """Special tokens without a duty of their own."""
    on_duty = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    added = [str(token) for token in tokenizer.get_added_vocab()]
    return [token for token in added if token not in on_duty][:at_most]
