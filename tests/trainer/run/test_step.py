"""One optimiser step: every token of it weighs the same, and a bad value on one rank is left out on all."""

import json
import math
from pathlib import Path

import pytest
import torch

from bitnet_crds.protocol import ExitCode
from bitnet_trainer.errors import NonFinite
from bitnet_trainer.outcome import exit_code_of

TWO_RANKS = """
import json, math, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
from bitnet_trainer.batch import Rows
from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.objectives.manager import ObjectiveManager
from bitnet_trainer.objectives.token_loss import TokenLoss
from bitnet_trainer.optim import build_adamw, set_learning_rate
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.setup import wrapped
from bitnet_trainer.step import StepInput, Stepper

torch.set_num_threads(1)
root = Path(sys.argv[-1]).parent
rows = torch.load(root / "rows.pt")
model = AutoModelForCausalLM.from_pretrained(root / "model")
world = int(os.environ["WORLD_SIZE"])
ranks = Ranks.join(gpus_per_worker=0)
optimizer = build_adamw(model, learning_rate=1.0, weight_decay=0.0)
guard = NonFiniteGuard(ranks.device)
stepper = Stepper(
    wrapped(LanguageModel(model), ranks), 2, optimizer, guard, ranks, gradient_clipping=1e9
)
# Uneven on purpose: 3 + 1 rows on one rank, 2 on the other.
own = [Rows.of(part) for part in ([[rows[:3], rows[3:4]], [rows[4:]]][rank] if world == 2 else [rows])]

def step(objective):
    manager = ObjectiveManager({"crossEntropy": objective})
    (tokens,) = ranks.total(manager.count(own, {"crossEntropy": 1.0})["crossEntropy"])
    return StepInput(own, manager, {"crossEntropy": tokens}, None)

norm = stepper.gradient_norm(step(CrossEntropyObjective()), "crossEntropy")
losses = stepper(step(CrossEntropyObjective()), {"crossEntropy": 0.5})
gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
before = {name: value.clone() for name, value in model.state_dict().items()}

class Poisoned(CrossEntropyObjective):
    def __call__(self, batch):
        loss = super().__call__(batch)
        return TokenLoss(loss.total * (math.nan if rank == 0 else 1.0), loss.tokens)

set_learning_rate(optimizer, 0.1)
bad = stepper(step(Poisoned()), {"crossEntropy": 1.0})
kept = all(torch.equal(before[name], value) for name, value in model.state_dict().items())
torch.save(gradients, root / f"gradients-{world}-{rank}.pt")
(root / f"step-{world}-{rank}.json").write_text(
    json.dumps(
        {
            "loss": losses.values[0].item(),
            "norm": norm,
            "norm of the step": losses.values[1].item(),
            "kept": kept,
            "counts": guard.counts().tolist(),
        }
    )
)
ranks.wait()
"""


def test_every_token_weighs_the_same_however_it_is_spread(make_run, ended):
    """Trap 8: neither micro batches nor ranks are means of means; and NaN on one rank skips on both."""
    run = make_run(workers=2)
    generator = torch.Generator().manual_seed(0)
    torch.save(torch.randint(2, 61, (6, 12), generator=generator), run.root / "rows.pt")
    worker = run.root / "worker.py"
    worker.write_text("import os\nrank = int(os.environ['RANK'])\n" + TWO_RANKS)
    for workers in (1, 2):
        launcher = make_run(workers=workers).launch(worker)
        assert ended(launcher) == 0, launcher.args

    alone = torch.load(run.root / "gradients-1-0.pt")
    found = {
        name: json.loads(Path(run.root, f"step-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")
    }
    for rank in (0, 1):
        for name, gradient in torch.load(run.root / f"gradients-2-{rank}.pt").items():
            torch.testing.assert_close(gradient, alone[name], atol=1e-6, rtol=1e-4)
    assert {step["kept"] for step in found.values()} == {True}
    assert all(step["counts"] == [1, 1] for step in found.values())
    assert found["2-0"]["loss"] == found["2-1"]["loss"] == pytest.approx(found["1-0"]["loss"])
    # What GradientRatio weighs by is the norm of the whole step's gradient, unweighted, on every rank alike.
    assert found["2-0"]["norm"] == found["2-1"]["norm"] == pytest.approx(found["1-0"]["norm"])
    assert found["1-0"]["norm of the step"] == pytest.approx(0.5 * found["1-0"]["norm"])


def test_bad_steps_are_left_out_counted_and_the_run_goes_on(make_run, train_here, poison):
    poison({2, 3, 6})
    run = make_run(steps=12)
    _, reporter = train_here(run)
    left_out = [record.step for record in run.metrics() if record.loss is None]
    assert left_out == [2, 3, 6]
    assert run.metrics()[-1].skipped_steps == reporter.progress.skipped_steps == 3
    assert all(math.isfinite(record.loss) for record in run.metrics() if record.step not in left_out)
    position = json.loads((run.folder / "checkpoints" / "step-00000012" / "position.json").read_text())
    assert position["skipped_steps"] == 3


@pytest.mark.parametrize("stop_at", [None, 6])
def test_one_bad_step_more_than_allowed_ends_the_run(make_run, train_here, poison, stop_at):
    """Also where it was stopped and gone on with in the middle of them."""
    poison({5, 6, 7})
    run = make_run(steps=12, health={"nonFinite": {"skipSteps": 2}})
    if stop_at is not None:
        assert train_here(run, stop_at=stop_at)[0].stopped
    with pytest.raises(NonFinite, match="3 steps in a row, up to step 7") as caught:
        train_here(run)
    assert exit_code_of(caught.value) == ExitCode.NON_FINITE
    assert run.checkpoints()[-1] == f"step-{stop_at or 5:08d}"
