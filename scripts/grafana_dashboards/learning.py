"""Panels of one run about what it learns: loss, schedules, MuonClip, data."""

from grafana_dashboards.board import AnyPanel
from grafana_dashboards.panels import Query, lines
from grafana_dashboards.promql import one


def loss() -> list[AnyPanel]:
    """What is minimised, and how steadily."""
    return [
        lines(
            "Total loss",
            "What is minimised: the weighted sum of the objectives, in nats where all are. It jumps where a"
            " phase changes the weights, rises a little while lambda blends quantisation in, and falls"
            " otherwise.",
            "none",
            Query(one("bitnet_trainer_loss"), "total"),
            width=12,
            height=9,
        ),
        lines(
            "Loss by objective",
            "Each objective by itself, unweighted, so that phases compare. Cross entropy near the original"
            " model's is the aim; one objective that rises while the others fall has too little weight.",
            "none",
            Query(one("bitnet_trainer_objective_loss", "objective"), "{{objective}}"),
            width=12,
            height=9,
        ),
        lines(
            "Parts of the total",
            "Loss times weight of each objective. One that takes nearly all of it is what the run trains on.",
            "none",
            Query(one("bitnet_trainer_objective_weighted_loss", "objective"), "{{objective}}"),
            stacked=True,
        ),
        lines(
            "Gradient norm",
            "L2 norm of the whole gradient, before clipping. It falls from the start and stays in one order"
            " of magnitude; peaks come with loss spikes, and a steady rise comes before divergence.",
            "none",
            Query(one("bitnet_trainer_gradient_norm"), "gradient norm"),
            low=0,
        ),
        lines(
            "Skipped steps and spikes",
            "Steps left out because loss or gradient was not finite, and losses more than 6 robust standard"
            " deviations over the last ones. Flat is normal; spikes now and then heal themselves, skipped"
            " steps in a row lead to a roll-back.",
            "none",
            Query(one("bitnetrun_nonfinite_steps_total"), "steps not finite"),
            Query(one("bitnet_trainer_loss_spikes_total"), "loss spikes"),
            counts=True,
            low=0,
        ),
    ]


def schedules() -> list[AnyPanel]:
    """What the ledger plans for each step."""
    return [
        lines(
            "Learning rate",
            "By optimizer. It rises in the warmup, holds, and decays at the end of the budget; a roll-back"
            " multiplies it by learningRateFactor.",
            "sci",
            Query(one("bitnet_trainer_learning_rate", "optimizer"), "{{optimizer}}"),
            low=0,
        ),
        lines(
            "Quantisation lambda",
            "0 is full precision, 1 is ternary. It goes to 1 over lambdaWarmup and stays there, across"
            " restarts too.",
            "none",
            Query(one("bitnet_trainer_quantization_lambda"), "lambda"),
            low=0,
            high=1,
        ),
        lines(
            "Weights of the objectives",
            "What each objective's loss is multiplied with. They change where a phase begins, over its"
            " transition.",
            "none",
            Query(one("bitnet_trainer_objective_weight", "objective"), "{{objective}}"),
            low=0,
        ),
    ]


def muonclip() -> list[AnyPanel]:
    """What QK-clip does; of runs with MuonClip alone."""
    return [
        lines(
            "Largest attention logit",
            "S_max of QK-clip over all heads, before the step's update. With MuonClip it stays near"
            " optimizer.clippingThreshold or below; another optimizer has none.",
            "none",
            Query(one("bitnet_trainer_largest_attention_logit"), "largest logit"),
            width=12,
            absent="Not MuonClip.",
        ),
        lines(
            "Clipped heads",
            "Query heads over the threshold in the last step. Some early in training are normal; they go to"
            " 0.",
            "none",
            Query(one("bitnet_trainer_clipped_heads"), "clipped heads"),
            counts=True,
            low=0,
            width=12,
            absent="Not MuonClip.",
        ),
    ]


def data() -> list[AnyPanel]:
    """Where the text comes from, and how much of it was read."""
    return [
        lines(
            "Mixture",
            "Share of the sequences from each source. Flat with the policy Static; Bandit and Influence"
            " move it slowly towards what helps. The ten largest at each moment.",
            "percentunit",
            Query(f"topk(10, {one('bitnet_trainer_mixture_share', 'source')})", "{{source}}"),
            stacked=True,
            low=0,
            high=1,
            width=12,
        ),
        lines(
            "Tokens trained",
            "Since the run began; steps done again after a restart count once. A straight line is normal.",
            "short",
            Query(one("bitnetrun_tokens"), "tokens"),
            low=0,
            width=12,
        ),
    ]
