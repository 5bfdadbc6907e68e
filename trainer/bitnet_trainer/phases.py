"""The objectives of each phase of a run, made ready before the first step."""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from bitnet_crds.objectives import BalancedObjective, Objective
from bitnet_crds.spec import BitNetRunSpec, Phase
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
    """The objectives of each phase by its name: those that it names, and those of the one before that fade.

    Raises BadInput where a mask token is not to be had, or an objective speaks of a layer that is not there.
    """
    mask_tokens = _mask_tokens(spec, loaded)
    phases: dict[str, PhaseObjectives] = {}
    before: Phase | None = None
    for phase in spec.phases:
        fading = before.objectives.named() if before is not None and phase.transition is not None else {}
        named = {**fading, **phase.objectives.named()}
        objectives = objectives_of(
            named, key_heads=student.key_heads, mask_tokens=mask_tokens, seed=spec.seed
        )
        manager = ObjectiveManager(objectives)
        # Said now, and not at the step where the phase begins.
        manager.capture(dict.fromkeys(named, 1.0), student.layers)
        phases[phase.name] = PhaseObjectives(manager, _balanced(named))
        before = phase
    return phases


def _balanced(named: Mapping[str, Objective]) -> frozenset[str]:
    return frozenset(
        name
        for name, objective in named.items()
        if isinstance(objective, BalancedObjective) and objective.weighting == "GradientRatio"
    )


def _mask_tokens(spec: BitNetRunSpec, loaded: LoadedModel) -> Mapping[str, int]:
    """The id of each mask token that the run's phases name; of the tokenizer's own under ""."""
    asked = {
        (index, diffusion.mask_token or "")
        for index, phase in enumerate(spec.phases)
        if (diffusion := phase.objectives.masked_diffusion) is not None
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
