"""Steps that are not finite, by real faults: nothing of them is kept on any rank, and it is told which."""

import json
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bitnet_trainer.errors import NonFinite
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.skipped import NonFiniteRecord
from one_step import MICRO_BATCHES, step_of

WORKER = """
import json, math, os, sys, torch
from pathlib import Path
from torch.distributed.checkpoint.state_dict import get_state_dict
from transformers import AutoModelForCausalLM
from bitnet_trainer.batch import Rows
from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.objectives.manager import ObjectiveManager
from bitnet_trainer.optim import build_adamw, set_learning_rate
from bitnet_trainer.optimizer import build_muonclip
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.setup import wrapped
from bitnet_trainer.step import StepInput, Stepper

torch.set_num_threads(1)
root = Path(sys.argv[-1]).parent
ranks = Ranks.join(gpus_per_worker=0)
rows = Rows.of(torch.randint(2, 61, (2, 12), generator=torch.Generator().manual_seed(ranks.rank)))
kept = {}

def everything():
    weights, state = get_state_dict(model, optimizer)
    moments = {f"{n} {k}": v for n, parts in state["state"].items() for k, v in parts.items()}
    return {name: value.clone() for name, value in {**weights, **moments}.items()}

for name in ("AdamW", "MuonClip"):
    model = AutoModelForCausalLM.from_pretrained(root / "model").train()
    if name == "AdamW":
        optimizer = build_adamw(model, learning_rate=0.01, weight_decay=0.1)
    else:
        optimizer = build_muonclip(model, muon_learning_rate=0.02, adam_learning_rate=0.01,
            weight_decay=0.1, threshold=0.01, alpha=0.5)
    set_learning_rate(optimizer, 1.0)
    guard = NonFiniteGuard(ranks.device)
    stepper = Stepper(wrapped(LanguageModel(model), ranks), 2, optimizer, guard, ranks, gradient_clipping=1.0)
    step = StepInput([rows], ObjectiveManager({"crossEntropy": CrossEntropyObjective()}),
        {"crossEntropy": 44}, None)
    for _ in range(2):
        stepper(step, {"crossEntropy": 1.0})
    before = everything()
    weight = model.model.layers[0].mlp.down_proj.weight
    fault = weight.register_hook(lambda gradient: gradient * math.nan) if ranks.rank == 1 else None
    losses = stepper(step, {"crossEntropy": 1.0})
    after = everything()
    kept[name] = {
        "changed": [key for key in before if not torch.equal(before[key], after[key])],
        "held": len(before),
        "loss": losses.values[0].item(),
        "counts": guard.counts().tolist(),
    }
    if fault is not None:
        fault.remove()
    stepper(step, {"crossEntropy": 1.0})
    kept[name]["moves on"] = not torch.equal(after["model.norm.weight"], everything()["model.norm.weight"])
(root / f"kept-{ranks.rank}.json").write_text(json.dumps(kept))
ranks.wait()
"""


def test_a_gradient_that_one_rank_spoils_leaves_no_trace_on_any(make_run, ended):
    """Weights, moments and step counts are the same bits, for either optimiser; the loss was finite."""
    run = make_run(workers=2)
    worker = run.root / "worker.py"
    worker.write_text(WORKER)
    assert ended(run.launch(worker)) == 0
    for rank in (0, 1):
        kept = json.loads((run.root / f"kept-{rank}.json").read_text())
        for name in ("AdamW", "MuonClip"):
            assert kept[name]["changed"] == [], (rank, name)
            assert kept[name]["held"] > 20
            assert math.isfinite(kept[name]["loss"])
            assert kept[name]["counts"] == [1, 1]
            assert kept[name]["moves on"]


@pytest.fixture
def spoil_gradients(monkeypatch):
    """Makes the cross-entropy's gradient NaN from a step on, not its value; a step has two micro batches."""

    def from_step(first: int) -> None:
        real, calls = CrossEntropyObjective.__call__, iter(range(10**6))

        def spoiled(self, batch):
            loss = real(self, batch)
            if next(calls) // 2 + 1 >= first:
                loss.total.register_hook(lambda gradient: gradient * math.nan)
            return loss

        monkeypatch.setattr(CrossEntropyObjective, "__call__", spoiled)

    return from_step


def test_whoever_reads_the_end_learns_steps_sequences_and_the_last_good_checkpoint(
    make_run, train_here, spoil_gradients, caplog
):
    spoil_gradients(7)
    run = make_run(steps=12, health={"nonFinite": {"skipSteps": 1}})
    with pytest.raises(NonFinite, match="2 steps in a row, up to step 8") as caught:
        train_here(run)
    record = NonFiniteRecord.model_validate_json((run.folder / "nonfinite.json").read_text())
    assert [(step.step, step.phase, step.not_finite) for step in record.steps] == [
        (7, "main", ("gradient",)),
        (8, "main", ("gradient",)),
    ]
    assert record.checkpoint is not None
    assert record.checkpoint.step == 5
    assert "The last good checkpoint is of step 5" in str(caught.value)
    # Eight sequences of each step, two thirds of them from the source that weighs twice as much.
    for step in record.steps:
        assert sum(_count(each) for some in step.sequences.values() for each in some) == 8
        assert _count_of(step.sequences["counting"]) in (5, 6)
        assert step.sentence() in str(caught.value)
        assert step.sentence() in caplog.text
    assert [line.left_out for line in run.metrics()] == [None] * 6 + list(record.steps)


def _count(stretch: str) -> int:
    first, _, last = stretch.rpartition(":")[2].partition("-")
    return int(last or first) - int(first) + 1


def _count_of(some: tuple[str, ...]) -> int:
    return sum(map(_count, some))


class _Reads(TorchDispatchMode):
    """Counts the places where the host would wait for a number of the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        self.count += func._overloadpacket is torch.ops.aten._local_scalar_dense
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["AdamW", "MuonClip"])
@pytest.mark.parametrize(
    ("architecture", "a_pass"),
    # transformers looks whether position_ids hold several documents, also where it made them itself.
    [("BitNetLlamaForCausalLM", 0), ("LlamaForCausalLM", 1)],
)
def test_a_step_reads_nothing_back(name, architecture, a_pass):
    """Neither `item`, `tolist`, `bool` nor `float` of a tensor, each a wait on a GPU.

    transformers has one.
    """
    take = step_of(name, architecture, torch.device("cpu"))
    take()
    with _Reads() as reads:
        losses = take()
        assert reads.count == a_pass * MICRO_BATCHES
        losses.values[0].item()
    assert reads.count == a_pass * MICRO_BATCHES + 1
