"""Layers compiled one by one: a graph for all that are alike, no break in it, and the same results."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from bitnet_trainer.answer import Answer, Capture
from bitnet_trainer.batch import Rows
from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.objectives.manager import ObjectiveManager
from bitnet_trainer.optim import build_adamw, set_learning_rate
from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.warmup import set_lambda
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.step import StepInput, Stepper
from families import small_model

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
"""Dynamo asks for it."""

FAMILIES = ("Llama", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3", "BitNetLlama")
IDS = torch.arange(24).view(2, 12)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _student(family: str) -> LanguageModel:
    model = small_model(f"{family}ForCausalLM")
    convert(model)
    return LanguageModel(model).train()


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_share_a_graph_without_a_break(family: str) -> None:
    student = _student(family)
    asked = {}
    for lam in (0.3, 1.0):
        set_lambda(student, lam)
        asked[lam] = student(IDS).hidden
    graphs = CompileCounter()
    student.compile_layers(graphs)
    for lam, expected in asked.items():
        set_lambda(student, lam)
        assert torch.equal(student(IDS).hidden, expected)
    assert graphs.frame_count == 2  # below lambda 1, and at it


@pytest.mark.parametrize("family", ["Llama", "Gemma"])
def test_an_mlp_of_codes_is_in_the_graph(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BitLinear, "_by_codes", lambda *_: True)
    student = _student(family)
    set_lambda(student, 1.0)
    found = []
    for compiled in (False, True):
        if compiled:
            student.compile_layers("aot_eager")
        student.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = student(IDS).hidden
        hidden.square().mean().backward()
        found.append([hidden, *(weight.grad for weight in student.decoder_layers.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_break_is_an_error() -> None:
    student = _student("Llama")
    student.compile_layers("eager")
    layer = student.decoder_layers[0]
    layer.input_layernorm.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    with pytest.raises(torch._dynamo.exc.Unsupported):
        student(IDS)
    assert "forward" not in vars(layer)


def _captured(student: LanguageModel) -> tuple[Answer, list[Tensor]]:
    student.zero_grad()
    capture = Capture(hidden_states=True, projections=frozenset({1}))
    answer = student(IDS, capture=capture)
    sum(each.square().mean() for each in (*answer.hidden_states, *answer.projections[1])).backward()
    return answer, [weight.grad.clone() for weight in student.parameters() if weight.grad is not None]


def test_what_is_captured_is_there_and_has_its_gradient() -> None:
    student = _student("Qwen3")
    set_lambda(student, 1.0)
    student(IDS)
    expected, gradients = _captured(student)
    student.compile_layers("aot_eager")
    student(IDS)  # a graph without hooks is there
    found, others = _captured(student)
    assert len(found.hidden_states) == 2
    for one, other in zip(
        (*found.hidden_states, *found.projections[1], *others),
        (*expected.hidden_states, *expected.projections[1], *gradients),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def _stepped(student: LanguageModel) -> list[Tensor]:
    """The weights after a step of two micro batches."""
    optimizer = build_adamw(student.model, learning_rate=0.1, weight_decay=0.1)
    set_learning_rate(optimizer, 1.0)
    cpu = torch.device("cpu")
    stepper = Stepper(student, 2, optimizer, NonFiniteGuard(cpu), Ranks(0, 1, cpu, None), 1.0)
    manager = ObjectiveManager({"crossEntropy": CrossEntropyObjective()})
    rows = [Rows.of(IDS), Rows.of(IDS.flip(1))]
    stepper(StepInput(rows, manager, {"crossEntropy": 44}, None), {"crossEntropy": 1.0})
    return list(student.parameters())


def test_what_a_replayed_pass_overwrites_is_taken_away_before(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _stepped(_student("Llama"))
    student = _student("Llama")
    student.replayed = True
    made: list[Tensor] = []
    for weight in student.decoder_layers.parameters():
        weight.register_post_accumulate_grad_hook(lambda weight: made.append(weight.grad.detach()))
    begun = 0

    def begin() -> None:
        """As a graph's memory is overwritten."""
        nonlocal begun
        begun += 1
        for gradient in made:
            gradient.fill_(torch.nan)

    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", begin)
    assert all(torch.equal(one, other) for one, other in zip(_stepped(student), expected, strict=True))
    assert begun == 2


def test_graphs_that_are_replayed_no_longer_are_forgotten() -> None:
    student = _student("Llama")
    student.replay(True)
    assert not student.compiled
    assert not student.replayed
    graphs = CompileCounter()
    student.compile_layers(graphs)
    expected = student(IDS).hidden
    found = []
    for replayed in (True, True, False, False, True):
        student.replay(replayed)
        assert student.replayed == replayed
        assert torch.equal(student(IDS).hidden, expected)
        found.append(graphs.frame_count)
    assert found == [1, 1, 2, 2, 2]


def test_the_model_itself_is_not_compiled() -> None:
    student = _student("Llama")
    graphs = CompileCounter()
    student.compile_layers(graphs)
    student.model(IDS)
    assert graphs.frame_count == 0


def test_under_autocast_layers_add_up_in_bfloat16_and_else_in_the_weights_type() -> None:
    student = _student("Gemma3")
    plain = student(IDS, capture=Capture(hidden_states=True)).hidden_states
    with torch.autocast("cpu", dtype=torch.bfloat16):
        short = student(IDS, capture=Capture(hidden_states=True)).hidden_states
    assert {each.dtype for each in plain} == {torch.float32}
    assert {each.dtype for each in short} == {torch.bfloat16}
    torch.testing.assert_close(short[-1].float(), plain[-1], rtol=0.1, atol=0.1)
