"""How gradients become steps: the optimiser, and its learning rate over the run."""

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


class Schedule(Record):
    """Learning rate: linear warmup, constant, linear decay to 0 (warmup-stable-decay, arXiv 2404.06395)."""

    warmup_steps: int = Field(default=0, ge=0, le=1_000_000_000)
    """Steps in which the learning rate rises from 0 to its peak."""
    decay_fraction: float = Field(default=0.2, ge=0, le=1)
    """Share of all steps, at the end, in which it falls linearly to 0."""
