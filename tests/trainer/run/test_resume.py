"""Exact resume: a run that was killed and gone on with is, bit for bit, the run that was not."""

import itertools
import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from lives import Kill, live


def kill_ranks(launcher):
    """SIGKILL to every rank and the launcher, as a lost node would have it."""
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    launcher.kill()
    launcher.communicate()


def assert_same(found, expected, weights_of):
    """Every tensor that a checkpoint holds, bit for bit, and every figure of every step, each there once."""
    ours, theirs = weights_of(found), weights_of(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert found.figures() == expected.figures()


MASKED = {"weight": 0.5, "maskToken": "w60", "weighting": "GradientRatio"}
DISTILLED = {
    "crossEntropy": {"weight": 1},
    "teacherLogits": {"weight": 0.5, "topK": 5, "temperature": 2},
    "hiddenStates": {"weight": 0.3, "weighting": "GradientRatio"},
}
PHASES = [
    {
        "name": "diffuse",
        "until": "30%",
        "objectives": {"crossEntropy": {"weight": 1}, "maskedDiffusion": MASKED},
    },
    {"name": "distill", "until": "100%", "transition": {"steps": 10}, "objectives": DISTILLED},
]
EVERYTHING = {
    "steps": 20,
    "seed": 5,
    "quantization": {"lambdaWarmup": {"steps": 14, "curve": "Cosine"}},
    "averaging": {"decay": 0.9},
    "phases": PHASES,
}
"""Until its 6th step it has no teacher yet, and until its 14th lambda or weights still move."""
KINDS = {
    "AdamW, Influence": {"policy": "Influence"},
    "MuonClip, Bandit": {
        "policy": "Bandit",
        "optimizer": {
            "name": "MuonClip",
            "muonLearningRate": 0.01,
            "adamLearningRate": 5e-3,
            "clippingThreshold": 0.05,
        },
        "schedule": {"name": "Cosine", "warmupSteps": 3, "finalShare": 0.1},
        "documents": "Separate",
    },
}
"""Two runs that have between them all that a run may have to remember. The threshold clips at every step."""


def everything(make_run, name, kind):
    """A run that has all of it, on a model with dropout: a random state that did not go on would show."""
    first = make_run(name=name)
    config = first.root / "model" / "config.json"
    config.write_text(config.read_text().replace('"attention_dropout": 0.0', '"attention_dropout": 0.1'))
    choices = {**KINDS[kind]}
    mixture = {"policy": choices.pop("policy"), "everySteps": 4, "smoothing": 0.5}
    documents = {"documents": choices.pop("documents", "Joined")}
    data = first.order.spec.data.model_dump(by_alias=True)
    return make_run(
        name=name,
        teacher={"from": f"file://{first.root}/teacher", "cacheLogits": True},
        data={**data, **documents, "mixture": mixture, "heldOut": "2%"},
        **EVERYTHING,
        **choices,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_step_it_is_bit_equal_to_never_killed(make_run, weights_of, kind):
    """Traps 3, 4 and 10: schedule, lambda, cursor, moments and random state go on where they were, and so do
    averages, measured weights and shares, masks, and the teacher's kept logits.

    A kill comes as soon as a step is reported, or so much later that it hits anything: a step, the thread
    that writes a checkpoint, the measuring of shares.
    """
    whole = everything(make_run, "whole", kind)
    assert live(whole.order) == 0
    numbers = itertools.count()
    assert {name.split("/")[1] for name in weights_of(whole)} == {"model", "optimizer", "random", "average"}

    kills = st.lists(
        st.builds(Kill, st.integers(1, EVERYTHING["steps"] - 1), st.just(0.0) | st.floats(0, 0.1)),
        min_size=1,
        max_size=3,
        unique_by=lambda kill: kill.step,
    ).map(lambda kills: sorted(kills, key=lambda kill: kill.step))

    # A smaller example says no more here, and each one is a training.
    @settings(max_examples=2, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @example(kills=[Kill(8), Kill(13)])
    @given(kills=kills)
    def check(kills):
        parts = everything(make_run, f"parts-{next(numbers)}", kind)
        for kill in kills:
            # A late one may find the run at its end already.
            assert live(parts.order, kill) in ((-9,) if kill.later == 0 else (-9, 0))
        assert live(parts.order) == 0
        assert_same(parts, whole, weights_of)

    check()


def test_launcher_and_ranks_are_killed_and_the_run_goes_on(make_run, train_here, weights_of):
    """As a lost node has it: everything of it is gone at once, whatever it was at."""
    whole = make_run(steps=24, name="whole")
    train_here(whole)
    parts = make_run(steps=24, name="parts")
    launcher = parts.launch()
    parts.wait_for_step(13, launcher)
    kill_ranks(launcher)
    assert parts.checkpoints()
    assert "step-00000024" not in parts.checkpoints()
    train_here(parts)
    assert_same(parts, whole, weights_of)


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
