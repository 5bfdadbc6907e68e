"""Layers replayed as CUDA graphs train as they do otherwise, bit for bit, over micro batches and shapes."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from bitnet_trainer.batch import Rows
from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.objectives.manager import ObjectiveManager
from bitnet_trainer.optim import build_adamw, set_learning_rate
from bitnet_trainer.quantization.warmup import set_lambda
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.step import StepInput, Stepper
from families import VOCABULARY, small_model

pytestmark = pytest.mark.gpu

WEIGHTS = {"crossEntropy": 1.0}
STEPS = ((3, 2), (3, 2), (3, 2), (1, 2), (1, 2), (2, 4), (2, 4), (2, 4))
"""Micro batches of a step, and the rows of each: another phase may have others of both."""


def trained(
    architecture: str, steps: Iterable[tuple[int, int]] = STEPS, *, replayed: bool
) -> tuple[list[float], list[Tensor], list[int]]:
    """Losses of the steps, the weights after them, and how many graphs had been recorded after each."""
    device = torch.device("cuda")
    torch._dynamo.reset()
    torch.manual_seed(0)
    # As a run does it: the model is there before it is converted.
    student = LanguageModel(small_model(architecture)).to(device).train()
    model = student.model
    convert(model)
    student.compile_layers(replayed=replayed)
    optimizer = build_adamw(model, learning_rate=0.01, weight_decay=0.1)
    guard, ranks = NonFiniteGuard(device), Ranks(0, 1, device, None)
    stepper = Stepper(student, student.layers, optimizer, guard, ranks, gradient_clipping=1.0)
    manager = ObjectiveManager({"crossEntropy": CrossEntropyObjective()})
    losses, recorded = [], []
    for number, (passes, rows) in enumerate(steps):
        micro_batches = [Rows.of(torch.randint(2, VOCABULARY, (rows, 16))) for _ in range(passes)]
        set_lambda(student, 0.5 if number < 2 else 1.0)
        assert student.decoder_layers[0].self_attn.q_proj.lam.kernels
        set_learning_rate(optimizer, 1.0)
        counts = manager.count(micro_batches, WEIGHTS)
        losses.append(stepper(StepInput(micro_batches, manager, counts, None), WEIGHTS).values[0])
        recorded.append(_recorded() if replayed else 0)
    assert not guard.counts().any()
    weights = [weight.detach().clone() for weight in model.parameters()]
    return [each.item() for each in losses], weights, recorded


def _recorded() -> int:
    """Graphs up to now, and one more for each time that this was asked."""
    graphs = torch._inductor.cudagraph_trees.get_container(0).tree_manager
    return next(graphs.graph_counter)


@pytest.mark.parametrize("architecture", ["BitNetLlamaForCausalLM", "LlamaForCausalLM"])
def test_replayed_layers_train_alike(architecture: str) -> None:
    losses, weights, _ = trained(architecture, replayed=False)
    others, replayed, recorded = trained(architecture, replayed=True)
    print(f"\n{architecture}: losses {losses[0]:.4f} .. {losses[-1]:.4f}; graphs after each step {recorded}")
    assert losses == others
    assert all(torch.equal(one, other) for one, other in zip(weights, replayed, strict=True))
    assert recorded[-1] - len(STEPS) > 2 * len(STEPS)  # recorded, and not refused


def test_graphs_of_steps_of_one_micro_batch_are_recorded_once() -> None:
    """The third step at lambda 1 is the first that replays."""
    _, _, recorded = trained("LlamaForCausalLM", [(1, 2)] * 9, replayed=True)
    assert recorded[-1] - recorded[-4] == 3  # as often as it was asked
