"""Exact resume: a run that was killed and gone on with is, bit for bit, the run that was not."""

import os
import signal
from pathlib import Path

import pytest
import torch


def kill_ranks(launcher):
    """SIGKILL to every rank and the launcher, as a lost node would have it."""
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    launcher.kill()
    launcher.communicate()


MASKED = {"weight": 0.5, "maskToken": "w60", "weighting": "GradientRatio"}
PHASES = [
    {
        "name": "diffuse",
        "until": "30%",
        "objectives": {"crossEntropy": {"weight": 1}, "maskedDiffusion": MASKED},
    },
    {
        "name": "distill",
        "until": "100%",
        "transition": {"steps": 40},
        "objectives": {
            "crossEntropy": {"weight": 1},
            "teacherLogits": {"weight": 0.5, "topK": 5, "temperature": 2},
            "hiddenStates": {"weight": 0.3, "weighting": "GradientRatio"},
        },
    },
]


def test_killed_and_resumed_is_bit_equal_to_never_killed(make_run, train_here, weights_of):
    """Traps 3, 4 and 10: schedule, lambda, cursor, moments and random state go on where they were, and so do
    measured weights and shares, masks, and the teacher's kept logits.

    The first kill is while lambda warms up, the second while the weights blend over and the teacher is there.
    The model has dropout, so that a random state which did not go on would show.
    """
    first = make_run()
    changes = {
        "quantization": {"lambdaWarmup": {"steps": 40, "curve": "Cosine"}},
        "seed": 5,
        "averaging": {"decay": 0.9},
        "phases": PHASES,
        "teacher": {"from": f"file://{first.root}/teacher", "cacheLogits": True},
        "data": first.order.spec.data.model_dump(by_alias=True)
        | {"mixture": {"policy": "Influence", "everySteps": 6, "smoothing": 0.5}, "heldOut": "2%"},
    }
    whole = make_run(steps=60, name="whole", **changes)
    config = whole.root / "model" / "config.json"
    config.write_text(config.read_text().replace('"attention_dropout": 0.0', '"attention_dropout": 0.1'))
    train_here(whole)

    parts = make_run(steps=60, name="parts", **changes)
    for kill_at in (13, 47):
        launcher = parts.launch()
        parts.wait_for_step(kill_at, launcher)
        kill_ranks(launcher)
        assert parts.checkpoints()
        assert "step-00000060" not in parts.checkpoints()
    train_here(parts)

    expected, found = weights_of(whole), weights_of(parts)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert parts.figures() == whole.figures()


def test_one_two_and_one_ranks_read_each_sequence_once(make_run, train_here, weights_of, ended):
    """Traps 8 and 9: the cursor is the whole run's, so another number of ranks neither repeats nor skips, and
    masks the same tokens of a sequence.

    Sums in another order round otherwise: losses agree to 1e-4, and weights to 1e-3.
    """
    masked = {"crossEntropy": {"weight": 1}, "maskedDiffusion": {"weight": 1, "maskToken": "w60"}}
    distilled = {"crossEntropy": {"weight": 0.5}, "teacherLogits": {"weight": 1, "temperature": 2}}
    changes = {
        "steps": 40,
        "phases": [
            {"name": "masked", "until": "75%", "objectives": masked},
            {"name": "distilled", "until": "100%", "objectives": distilled},
        ],
    }
    whole = make_run(name="whole", **changes)
    train_here(whole)

    part = make_run(name="parts", **changes)
    train_here(part, stop_at=4)
    launcher = make_run(name="parts", workers=2, **changes).launch()
    part.wait_for_step(8, launcher)
    launcher.send_signal(signal.SIGTERM)
    assert ended(launcher) == 143
    train_here(part)

    ranks = [record.world_size for record in part.metrics()]
    assert set(ranks[:4]) == {1}
    assert set(ranks[4:8]) == {2}
    assert ranks[-1] == 1
    assert [record.step for record in part.metrics()] == list(range(1, 41))
    for expected, found in zip(whole.metrics(), part.metrics(), strict=True):
        assert found.loss == pytest.approx(expected.loss, abs=1e-4)
    expected, found = weights_of(whole), weights_of(part)
    for name, tensor in expected.items():
        if name.startswith("/model"):
            torch.testing.assert_close(found[name], tensor, atol=1e-3, rtol=0)
