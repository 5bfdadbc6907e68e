"""What each policy makes of the shares in a run of two sources, of which one teaches and one is noise."""

import random

import pytest
from prometheus_client.parser import text_string_to_metric_families

WEIGHTS = {"counting": 2, "noise": 2}


@pytest.fixture
def shares_after(make_run, train_here, tmp_path):
    """The shares that the trainer's /metrics tell at the end of a run with that policy."""
    draw = random.Random(1)
    (tmp_path / "noise.txt").write_text(" ".join(f"w{draw.randrange(2, 60)}" for _ in range(3000)))

    def run(**mixture):
        sources = [
            {"name": name, "uri": f"file://{tmp_path}/{name}.txt", "weight": weight}
            for name, weight in WEIGHTS.items()
        ]
        data = {"sequenceLength": 16, "sources": sources, "mixture": mixture}
        _, reporter = train_here(
            make_run(
                steps=40,
                every_steps=100,
                data=data,
                phases=[{"name": "all", "until": "100%", "objectives": {"crossEntropy": {"weight": 1}}}],
                teacher=None,
                optimizer={"adamLearningRate": 2e-2},
            )
        )
        return {
            sample.labels["source"]: sample.value
            for family in text_string_to_metric_families(reporter.metrics().decode())
            for sample in family.samples
            if sample.name == "bitnet_trainer_mixture_share"
        }

    return run


MEASURED = {"everySteps": 5, "smoothing": 0.5}


@pytest.mark.parametrize(
    ("mixture", "least", "most"),
    [
        ({"policy": "Static"}, 0.5, 0.5),
        ({"policy": "Bandit", **MEASURED}, 0.05, 0.48),
        ({"policy": "Influence", "target": "counting", **MEASURED}, 0.6, 0.9),
    ],
    ids=["Static stays", "Bandit reads what is predicted worst", "Influence reads what helps"],
)
def test_a_policy_moves_the_shares_where_it_says_and_metrics_tell(shares_after, mixture, least, most):
    """The share of what can be learned, which began at a half."""
    shares = shares_after(**mixture)
    assert set(shares) == set(WEIGHTS)
    assert sum(shares.values()) == pytest.approx(1)
    assert least <= shares["counting"] <= most, shares
