"""A run with MuonClip: it trains, goes on bit for bit where it was killed, and ranks agree."""

import pytest
import torch

from bitnet_crds.protocol import ExitCode
from bitnet_trainer.errors import BadInput
from families import small_model

MUONCLIP = {
    "name": "MuonClip",
    "muonLearningRate": 0.01,
    "adamLearningRate": 5e-3,
    "clippingThreshold": 0.05,
    "clippingAlpha": 0.5,
    "weightDecay": 0.01,
}
"""The threshold is so low that heads of the tiny model are clipped in every step."""


def parts(weights, name):
    return {key: value for key, value in weights.items() if key.endswith(name)}


def test_it_trains_and_goes_on_bit_for_bit(make_run, train_here, weights_of, caplog):
    """Stopped at a step that has no checkpoint of its own else, and gone on with."""
    caplog.set_level("INFO")
    whole = make_run(steps=24, name="whole", optimizer=MUONCLIP)
    _, reporter = train_here(whole)
    assert caplog.text.count("hidden: 14 parameters, 15,360 numbers, Muon at 0.01, decay 0.01") == 1
    records = whole.metrics()
    losses = [record.loss for record in records]
    assert losses[-7] < losses[0] - 0.3  # before the teacher's loss comes in
    for record in records:
        assert (record.clipped_heads > 0) is (record.largest_attention_logit > 0.05)
        assert record.muon_learning_rate == pytest.approx(2 * record.learning_rate)
    assert sum(record.clipped_heads for record in records) > 24
    assert reporter.progress.largest_attention_logit == records[-1].largest_attention_logit
    assert reporter.progress.muon_learning_rate == records[-1].muon_learning_rate

    halves = make_run(steps=24, name="halves", optimizer=MUONCLIP)
    for stop_at in (7, 13, None):
        train_here(halves, stop_at=stop_at)
    expected, found = weights_of(whole), weights_of(halves)
    assert len(parts(expected, "/momentum")) == 14
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert halves.figures() == whole.figures()


@pytest.mark.parametrize("changed", ["name", "clippingThreshold"])
def test_each_part_of_it_matters(make_run, train_here, weights_of, changed):
    """Switched off, the weights are others: Muon is not AdamW, and QK-clip clips."""
    without = {"name": {"adamLearningRate": 5e-3, "weightDecay": 0.01}, "clippingThreshold": {**MUONCLIP}}
    without["clippingThreshold"]["clippingThreshold"] = 1000
    weights = []
    for name, optimizer in (("with", MUONCLIP), ("without", without[changed])):
        run = make_run(steps=4, name=name, optimizer=optimizer)
        train_here(run)
        weights.append(parts(weights_of(run), "q_proj.weight"))
    assert weights[0]
    assert not any(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_two_ranks_train_what_one_does(make_run, train_here, weights_of, ended):
    """Trap 11: one S_max for all ranks. Sums in another order round otherwise, and Newton-Schulz steps
    are large: losses agree to a thousandth, and weights to 2e-3."""
    one, two = (make_run(steps=8, workers=n, name=f"ranks{n}", optimizer=MUONCLIP) for n in (1, 2))
    train_here(one)
    assert ended(two.launch()) == ExitCode.SUCCEEDED
    expected, found = weights_of(one), weights_of(two)
    for ours, theirs in zip(one.figures(), two.figures(), strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-3)
    for name, value in parts(expected, ".weight").items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-3)


def test_a_model_whose_logits_cannot_be_had_is_refused(make_run, train_here):
    run = make_run(steps=4, optimizer=MUONCLIP)
    small_model("Gemma2ForCausalLM").save_pretrained(run.root / "model")
    with pytest.raises(BadInput, match=r"those of Gemma2ForCausalLM cannot be had.*Write `name: AdamW`"):
        train_here(run)
