"""How gradients become steps: the optimiser, its learning rate over the run, and what weights are kept."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bitnet_crds.errors import WrongValueError
from bitnet_crds.record import Record


class Optimizer(Record):
    """How gradients become steps. Gains of norms and biases are not decayed."""

    name: Literal["AdamW", "MuonClip"] = "AdamW"
    """AdamW: arXiv 1711.05101, betas 0.9 and 0.95. MuonClip: Muon for the matrices of the decoder layers,
    AdamW for embeddings, head, gains and biases, and attention logits kept in bounds (arXiv 2507.20534)."""
    adam_learning_rate: float = Field(default=1e-3, gt=0, le=1)
    """AdamW's peak learning rate. Quantisation-aware training wants 5 to 10 times that of fine-tuning."""
    muon_learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """With MuonClip: Muon's peak learning rate, at which an update's root mean square is 0.2 times the rate;
    0.005 where it is not said."""
    clipping_threshold: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """With MuonClip: a head whose largest attention logit in a step is above this has its queries and keys
    scaled down to it; 20 where it is not said."""
    clipping_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """With MuonClip: the queries take that factor to the power of this, the keys the rest; 0.5 where it is
    not said."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay."""
    gradient_clipping: float = Field(default=1.0, gt=0, le=1_000_000)
    """The gradient's global L2 norm is clipped to this."""

    @model_validator(mode="after")
    def _adamw_has_no_settings_of_muonclip(self) -> "Optimizer":
        if self.name == "AdamW":
            for field in ("muon_learning_rate", "clipping_threshold", "clipping_alpha"):
                if getattr(self, field) is not None:
                    key = type(self).model_fields[field].alias or field
                    raise WrongValueError(
                        f"{key} has no meaning with AdamW", "Remove it, or write `name: MuonClip`", field=key
                    )
        return self

    @property
    def muon_rate(self) -> float:
        """Muon's peak learning rate."""
        return 0.005 if self.muon_learning_rate is None else self.muon_learning_rate

    @property
    def largest_logit(self) -> float:
        """What QK-clip keeps attention logits to."""
        return 20.0 if self.clipping_threshold is None else self.clipping_threshold

    @property
    def queries_exponent(self) -> float:
        """How much of QK-clip's factor queries take."""
        return 0.5 if self.clipping_alpha is None else self.clipping_alpha


DecayCurve = Literal["Linear", "Cosine", "OneMinusSqrt"]
"""How a learning rate falls; `plan.LearningRateSchedule` has the formulas."""


class Schedule(Record):
    """How each learning rate moves over the run's steps: it rises linearly to its peak, and then falls."""

    name: Literal["WarmupStableDecay", "Cosine", "Linear"] = "WarmupStableDecay"
    """WarmupStableDecay: it holds, and falls in the last steps (arXiv 2404.06395). Cosine and Linear: it
    falls from the end of the warmup to the end of the run, along half a cosine (arXiv 1608.03983) or a
    straight line."""
    warmup_steps: int = Field(default=0, ge=0, le=1_000_000_000)
    """Steps in which the learning rate rises from 0 to its peak."""
    decay_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    """With WarmupStableDecay: share of all steps, at the end, in which it falls; 0.2 where it is not said."""
    decay_curve: DecayCurve | None = None
    """With WarmupStableDecay: how it falls, p going from 0 to 1: Linear: 1 - p. Cosine: (1 + cos(pi p)) / 2.
    OneMinusSqrt: 1 - sqrt(p) (arXiv 2405.18392). Linear where it is not said."""
    final_share: float = Field(default=0.0, ge=0, le=1)
    """The share of the peak that it falls to."""

    @model_validator(mode="after")
    def _decay_is_of_warmup_stable_decay(self) -> "Schedule":
        if self.name != "WarmupStableDecay":
            for field in ("decay_fraction", "decay_curve"):
                if getattr(self, field) is not None:
                    key = type(self).model_fields[field].alias or field
                    raise WrongValueError(
                        f"{key} has no meaning with {self.name}, which falls from the warmup to the end",
                        "Remove it, or write `name: WarmupStableDecay`",
                        field=key,
                    )
        return self

    @property
    def decaying(self) -> float:
        """With WarmupStableDecay: share of all steps in which the rates fall."""
        return 0.2 if self.decay_fraction is None else self.decay_fraction

    @property
    def curve(self) -> DecayCurve:
        """How they fall."""
        if self.name == "WarmupStableDecay":
            return self.decay_curve or "Linear"
        return self.name


class Averaging(Record):
    """Evaluates and exports an exponential moving average of the weights, in place of the last step's. It
    costs 4 bytes a weight; checkpoints hold both, and their inferenceWeights are the last step's."""

    decay: float = Field(gt=0, lt=1)
    """After step t: average = d * average + (1 - d) * weights, d being decay or, where that is less,
    t / (9 + t). 0.999 remembers about the last thousand steps."""
