"""Layers replayed as CUDA graphs train as they do otherwise, bit for bit, over micro batches and shapes."""

import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitnet_trainer.batch import Rows, SequenceId
from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.objectives.hidden_states import HiddenStatesObjective
from bitnet_trainer.objectives.manager import ObjectiveManager
from bitnet_trainer.objectives.masked_diffusion import MaskedDiffusionObjective
from bitnet_trainer.objectives.masking import Masking
from bitnet_trainer.objectives.objective import Objective
from bitnet_trainer.objectives.teacher_logits import TeacherLogitsObjective
from bitnet_trainer.optim import build_adamw, set_learning_rate
from bitnet_trainer.optimizer import build_muonclip
from bitnet_trainer.quantization.warmup import set_lambda
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.step import StepInput, Stepper
from bitnet_trainer.teacher import Teacher
from families import VOCABULARY, small_model

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
STEPS = ((3, 2), (3, 2), (3, 2), (1, 2), (1, 2), (2, 4), (2, 4), (2, 4))
"""Micro batches of a step, and the rows of each: another phase may have others of both."""
GRAPHS = 3 * 2 * 2
"""At least: forward and backward of both layers, below lambda 1, at 1, and with more rows. A step of one
micro batch replays what one of several does."""
END = 1
"""The token that ends a document."""


@dataclass(frozen=True)
class Scene:
    """What is trained, and how."""

    architecture: str = "LlamaForCausalLM"
    objectives: Mapping[str, Objective] = field(
        default_factory=lambda: {"crossEntropy": CrossEntropyObjective()}
    )
    documents: bool = False
    muonclip: bool = False
    teacher: Path | None = None
    """Its folder."""

    def rows(self, count: int) -> Rows:
        """So many, drawn at random."""
        ids = tuple(SequenceId(0, 0, number) for number in range(count))
        tokens = torch.randint(2, VOCABULARY, (count, 64 if self.documents else 16))
        if not self.documents:
            return Rows.of(tokens, ids)
        tokens[:, 20::25] = END
        return Rows.of_documents(tokens, END, ids)


def trained(
    scene: Scene,
    steps: Iterable[tuple[int, int]] = STEPS,
    *,
    replayed: bool,
    between: Callable[[int, LanguageModel], None] = lambda _number, _student: None,
) -> tuple[list[float], list[Tensor], list[int]]:
    """Losses of the steps, the weights after them, and how many graphs had been recorded after each.

    Before each step `between` has its number, and the student.
    """
    torch._dynamo.reset()
    torch.manual_seed(0)
    # As a run does it: the model is there before it is converted.
    student = LanguageModel(small_model(scene.architecture)).to(DEVICE).train()
    model = student.model
    convert(model)
    student.compile_layers(replayed=replayed)
    optimizer: torch.optim.Optimizer = build_adamw(model, learning_rate=0.01, weight_decay=0.1)
    if scene.muonclip:
        optimizer = build_muonclip(
            model,
            muon_learning_rate=0.01,
            adam_learning_rate=0.01,
            weight_decay=0.1,
            threshold=0.05,
            alpha=0.5,
        )
    teacher = None
    if scene.teacher is not None:
        teacher = Teacher(f"file://{scene.teacher}", None, VOCABULARY, DEVICE)
        teacher.load()
    guard = NonFiniteGuard(DEVICE)
    stepper = Stepper(
        student, student.layers, optimizer, guard, Ranks(0, 1, DEVICE, None), gradient_clipping=1.0
    )
    manager, weights = ObjectiveManager(scene.objectives), dict.fromkeys(scene.objectives, 1.0)
    losses, recorded = [], []
    for number, (passes, rows) in enumerate(steps):
        micro_batches = [scene.rows(rows) for _ in range(passes)]
        between(number, student)
        set_lambda(student, 0.5 if number < 2 else 1.0)
        assert student.decoder_layers[0].self_attn.q_proj.lam.kernels
        set_learning_rate(optimizer, 1.0)
        counts = manager.count(micro_batches, weights)
        losses.append(stepper(StepInput(micro_batches, manager, counts, teacher), weights).values[0])
        recorded.append(_recorded() if student.replayed else 0)
    assert not guard.counts().any()
    final = [weight.detach().clone() for weight in model.parameters()]
    return [each.item() for each in losses], final, recorded


def _recorded() -> int:
    """Graphs up to now, and one more for each time that this was asked before."""
    graphs = torch._inductor.cudagraph_trees.get_container(0).tree_manager
    return next(graphs.graph_counter)


def train_alike(scene: Scene) -> None:
    """Asserts it, and that graphs were recorded, and not refused."""
    losses, weights, _ = trained(scene, replayed=False)
    others, replayed, recorded = trained(scene, replayed=True)
    print(f"\nlosses {losses[0]:.4f} .. {losses[-1]:.4f}; graphs after each step {recorded}")
    assert losses == others
    assert all(torch.equal(one, other) for one, other in zip(weights, replayed, strict=True))
    assert recorded[-1] - (len(STEPS) - 1) >= GRAPHS


MASKING = Masking(0.5, 0, "Complementary", seed=5)


@pytest.mark.parametrize(
    "scene",
    [
        pytest.param(Scene(), id="Llama"),
        pytest.param(Scene("BitNetLlamaForCausalLM"), id="BitNetLlama"),
        pytest.param(Scene("Qwen3ForCausalLM", muonclip=True), id="MuonClip"),
        pytest.param(Scene(documents=True), id="documents"),
        pytest.param(
            Scene(
                objectives={
                    "crossEntropy": CrossEntropyObjective(),
                    "maskedDiffusion": MaskedDiffusionObjective(MASKING),
                }
            ),
            id="two passes a micro batch",
        ),
    ],
)
def test_replayed_layers_train_alike(scene: Scene) -> None:
    train_alike(scene)


def test_replayed_layers_train_alike_with_a_teacher(tmp_path: Path) -> None:
    small_model(seed=1).save_pretrained(tmp_path)
    objectives = {
        "teacherLogits": TeacherLogitsObjective(2.0, 10, "Bucket", None),
        "hiddenStates": HiddenStatesObjective("Cosine", "Uniform", None),
    }
    train_alike(Scene(objectives=objectives, teacher=tmp_path))


def test_what_is_done_between_steps_changes_nothing() -> None:
    """The model itself has a pass forward and back, as text is measured, and weights are copied."""

    def between(_number: int, student: LanguageModel) -> None:
        ids = torch.arange(2, 18, device=DEVICE).view(1, 16)
        student.model(ids, labels=ids).loss.backward()
        student.zero_grad(set_to_none=True)
        for weight in student.parameters():
            weight.detach().to("cpu", non_blocking=True)

    losses, weights, _ = trained(Scene(), replayed=False)
    others, replayed, _ = trained(Scene(), replayed=True, between=between)
    assert losses == others
    assert all(torch.equal(one, other) for one, other in zip(weights, replayed, strict=True))


def test_graphs_may_be_given_up_and_made_anew() -> None:
    """Given up, they hold no memory."""
    switches = {1: True, 4: False, 5: True}
    held = []

    def between(number: int, student: LanguageModel) -> None:
        student.replay(switches.get(number, student.replayed))
        student.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()
        held.append(sum(segment["segment_pool_id"] != (0, 0) for segment in torch.cuda.memory_snapshot()))

    losses, weights, _ = trained(Scene(), replayed=False)
    others, switched, _ = trained(Scene(), replayed=False, between=between)
    assert losses == others
    assert all(torch.equal(one, other) for one, other in zip(weights, switched, strict=True))
    assert [segments > 0 for segments in held] == [number in (2, 3, 6, 7) for number in range(len(STEPS))]


@pytest.mark.parametrize("passes", [1, 3])
def test_graphs_are_recorded_once(passes: int) -> None:
    """The third step at lambda 1 is the first that replays, where weights' codes are kept, too."""
    _, _, recorded = trained(Scene(), [(passes, 2)] * 9, replayed=True)
    assert recorded[-1] - recorded[-4] == 3  # as often as it was asked
