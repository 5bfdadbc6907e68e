"""Lambda warmup: setting the lambda that the ledger gives for a step. No state lives here."""

from torch import nn

from bitnet_trainer.errors import BadInput
from bitnet_trainer.quantization.bitlinear import QuantizationLambda


def has_lambda(model: nn.Module) -> bool:
    """Whether `model` has a BitLinear, and so something that lambda has an effect on."""
    return any(isinstance(module, QuantizationLambda) for module in model.modules())


def set_lambda(model: nn.Module, value: float) -> None:
    """Sets lambda of every BitLinear in `model`, in place.

    Args:
        model: a converted model, wrapped (DDP, FSDP, torch.compile) or not.
        value: in [0, 1], from `Plan.quantization_lambda(step)` with the GLOBAL step, so that a resumed run
            goes on where it was.

    Raises:
        BadInput: value is outside [0, 1], or the model has no BitLinear.
    """
    if not 0.0 <= value <= 1.0:
        raise BadInput(f"lambda is {value}, outside [0, 1]; give the ledger's value for the step")
    lambdas = [module for module in model.modules() if isinstance(module, QuantizationLambda)]
    if not lambdas:
        raise BadInput(
            f"{type(model).__name__} has no BitLinear, so lambda has no effect; convert the model first"
        )
    for lam in lambdas:
        lam.set(value)
