"""The curriculum, run whole: weights that blend over, shares, teachers that fade, exact resume of it all."""

import json

import pytest
import torch

from bitnet_crds.protocol import TeacherState
from bitnet_trainer.errors import BadInput
from bitnet_trainer.models.packed import load_packed
from bitnet_trainer.teacher import Teacher
from measuring import perplexity

MASK = {"maskToken": "w60"}
PHASES = [
    {
        "name": "diffuse",
        "until": "25%",
        "mixture": {"counting": 1},
        "objectives": {"crossEntropy": {"weight": 1}, "maskedDiffusion": {"weight": 0.5, **MASK}},
    },
    {
        "name": "distill",
        "until": "60%",
        "mixture": {"counting": 1, "lines": 3},
        "transition": {"steps": 6, "curve": "Cosine"},
        "objectives": {
            "crossEntropy": {"weight": 1},
            "teacherLogits": {"weight": 0.5, "topK": 7, "temperature": 2},
            "attentionRelations": {"weight": 0.3, "weighting": "GradientRatio"},
        },
    },
    {
        "name": "fade",
        "until": "80%",
        "transition": {"steps": 4},
        "objectives": {"crossEntropy": {"weight": 1}},
    },
    {"name": "alone", "until": "100%", "objectives": {"crossEntropy": {"weight": 1}}},
]


def test_weights_shares_and_teacher_are_the_ledgers_at_every_step(make_run, train_here):
    run = make_run(steps=40, phases=PHASES)
    _, reporter = train_here(run)
    plan = run.order.plan
    for record in run.metrics():
        wanted = {name: weight for name, weight in plan.weights_at(record.step - 1).items() if weight > 0}
        assert record.objectives.keys() == wanted.keys()
        for name in wanted.keys() - {"attentionRelations"}:
            assert record.objectives[name].weight == wanted[name]
        assert record.loss == pytest.approx(sum(part.weighted for part in record.objectives.values()))
    # Steps 11 to 16 blend over: masked diffusion fades as the others come in.
    fading = [record.objectives["maskedDiffusion"].weight for record in run.metrics()[9:15]]
    assert fading == sorted(fading, reverse=True)
    assert fading[0] == 0.5
    assert "maskedDiffusion" not in run.metrics()[15].objectives

    shares = {record.phase: record.mixture for record in run.metrics()}
    assert shares == {
        "diffuse": {"counting": 1.0, "lines": 0.0},
        "distill": {"counting": 0.25, "lines": 0.75},
        "fade": {"counting": pytest.approx(2 / 3), "lines": pytest.approx(1 / 3)},
        "alone": {"counting": pytest.approx(2 / 3), "lines": pytest.approx(1 / 3)},
    }
    position = json.loads((run.folder / "checkpoints" / "step-00000040" / "position.json").read_text())
    # 10 steps of 8 from the one; then 14 steps as 1 to 3; then 16 steps as 2 to 1.
    assert position["consumed"] == [80 + 28 + 85, 84 + 43]

    # The teacher stays while its objectives fade, and goes after that.
    teachers = {(seen.phase, seen.teacher) for seen in reporter.seen if seen.objectives}
    assert ("fade", TeacherState.READY) in teachers
    assert reporter.progress.teacher is TeacherState.ABSENT


def test_the_relations_gradient_is_held_at_its_share(make_run, train_here):
    """However the relations' loss is scaled, its weight makes up for it."""
    run = make_run(steps=40, phases=PHASES)
    train_here(run)
    weights = [record.objectives["attentionRelations"].weight for record in run.metrics()[10:24]]
    assert all(weight > 0 for weight in weights)
    # Measured at the phase's steps 0, 1, 2, 4 and 8, it moves with the model's gradients in between.
    assert len({weight / 0.3 for weight in weights[5:8]}) == 1
    assert weights[8] != weights[7]


@pytest.mark.parametrize("stops", [(3, 12, 24), (10, 13, 26), (19, 32)], ids=str)
def test_stopped_anywhere_it_is_bit_equal(make_run, train_here, weights_of, stops):
    """In the middle of a transition, at a phase's edge, between two measurements of gradients."""
    whole = make_run(steps=40, phases=PHASES, name="whole")
    train_here(whole)
    parts = make_run(steps=40, phases=PHASES, name="parts")
    for stop in stops:
        result, _ = train_here(parts, stop_at=stop)
        assert result.stopped
    train_here(parts)
    expected, found = weights_of(whole), weights_of(parts)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert parts.figures() == whole.figures()


INFLUENCE = {"policy": "Influence", "everySteps": 4, "smoothing": 0.5, "target": "counting"}


def test_influence_moves_the_shares_and_resumes_bit_equal(make_run, train_here, weights_of):
    def with_influence(name):
        run = make_run(steps=24, name=name)
        data = run.order.spec.data.model_dump(by_alias=True) | {"mixture": INFLUENCE, "heldOut": "2%"}
        return make_run(steps=24, name=name, data=data)

    whole = with_influence("whole")
    train_here(whole)
    shares = [record.mixture["counting"] for record in whole.metrics()]
    assert shares[:4] == [pytest.approx(2 / 3)] * 4
    assert len(set(shares)) > 3

    parts = with_influence("parts")
    train_here(parts, stop_at=4)
    train_here(parts, stop_at=10)
    train_here(parts)
    expected, found = weights_of(whole), weights_of(parts)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert parts.figures() == whole.figures()


def test_two_ranks_train_what_does_not_reach_the_head(make_run, train_here, ended):
    """DDP waits for a gradient of every parameter, and relations of one layer give the later ones none."""
    phases = [
        {
            "name": "relate",
            "until": "50%",
            "objectives": {"attentionRelations": {"weight": 1, "layer": 0}, "hiddenStates": {"weight": 1}},
        },
        {
            "name": "both",
            "until": "100%",
            "objectives": {
                "crossEntropy": {"weight": 1},
                "maskedDiffusion": {"weight": 1, "mode": "Complementary", **MASK},
                "blockAttention": {"weight": 0.5, "weighting": "GradientRatio", "layer": 0, "blockSize": 4},
            },
        },
    ]
    alone = make_run(steps=8, name="alone", phases=phases)
    train_here(alone)
    pair = make_run(steps=8, name="pair", workers=2, phases=phases)
    assert ended(pair.launch()) == 0
    for expected, found in zip(alone.metrics(), pair.metrics(), strict=True):
        assert found.world_size == 2
        # Sums in another order turn a ternary code here and there.
        assert found.loss == pytest.approx(expected.loss, rel=1e-2)
        for name, part in expected.objectives.items():
            assert found.objectives[name].weight == pytest.approx(part.weight, rel=1e-2)


def test_layers_that_no_objective_reaches_train_alike_on_any_ranks_and_resume(
    make_run, train_here, weights_of, ended
):
    """They are decayed, and have a state in checkpoints."""
    changes = {
        "phases": [
            {
                "name": "relate",
                "until": "100%",
                "objectives": {"attentionRelations": {"weight": 1, "layer": 0}},
            }
        ],
        "optimizer": {"adamLearningRate": 0.05, "weightDecay": 0.5},
    }
    pair = make_run(name="pair", workers=2, **changes)
    assert ended(pair.launch()) == 0
    parts = make_run(name="parts", **changes)
    train_here(parts, stop_at=3)
    train_here(parts)
    expected, found = weights_of(pair), weights_of(parts)
    unreached = [name for name in expected if name.startswith("/model") and "layers.1." in name]
    assert unreached
    for name in unreached:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)


def test_the_teachers_logits_are_asked_once_and_replayed_bit_equal(make_run, train_here, monkeypatch):
    """With little text every sequence comes again; the second time the teacher is not asked."""
    asked = []
    real = Teacher.answer

    def answer(self, rows, capture):
        asked.append(len(rows))
        return real(self, rows, capture)

    monkeypatch.setattr(Teacher, "answer", answer)
    phases = [{"name": "all", "until": "100%", "objectives": {"teacherLogits": {"weight": 1, "topK": 5}}}]

    def run(name, cached):
        run = make_run(steps=12, name=name)
        source = f"file://{run.root}/short.txt"
        (run.root / "short.txt").write_text(" ".join(f"w{2 + n % 50}" for n in range(16 * 20)))
        data = {"sequenceLength": 16, "sources": [{"name": "short", "uri": source}], "heldOut": "20%"}
        teacher = {"from": f"file://{run.root}/teacher", "cacheLogits": cached}
        run = make_run(steps=12, name=name, phases=phases, data=data, teacher=teacher)
        asked.clear()
        train_here(run)
        return run, sum(asked)

    plain, without = run("plain", cached=False)
    kept, with_cache = run("kept", cached=True)
    assert without == 12 * 8
    assert with_cache == 16
    assert plain.figures() == kept.figures()


@pytest.mark.parametrize(
    "quantization",
    [
        {"weights": "Haar"},
        {"subLN": "OutputProjections"},
        {"lowRankCorrection": {"ratio": 0.2}},
    ],
    ids=str,
)
def test_packed_weights_are_the_trained_model(make_run, train_here, quantization):
    """The export, and the part of a checkpoint that is a model to run."""
    checkpoint = make_run().order.spec.checkpoint.model_dump(by_alias=True) | {"inferenceWeights": True}
    run = make_run(
        steps=12,
        quantization={"lambdaWarmup": {"steps": 4}, **quantization},
        checkpoint=checkpoint,
        export={"formats": ["Packed"]},
    )
    result, _ = train_here(run)
    held_out = run.held_out()
    for folder in (
        run.folder / "export" / "packed",
        run.folder / "checkpoints" / "step-00000012" / "inference",
    ):
        model, tokenizer = load_packed(folder)
        assert tokenizer is not None
        assert f"{perplexity(model, held_out).value:.2f}" == result.evaluation.perplexity_after


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ({"maskedDiffusion": {"weight": 1}}, "the tokenizer has no mask token"),
        ({"maskedDiffusion": {"weight": 1, "maskToken": "<gone>"}}, "no token '<gone>'"),
        ({"hiddenStates": {"weight": 1, "layerWeights": [1, 1, 1]}}, "layerWeights"),
        ({"attentionRelations": {"weight": 1, "layer": 2}}, "layer"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_first_step(make_run, train_here, objectives, message):
    phases = [
        {"name": "good", "until": "50%", "objectives": {"crossEntropy": {"weight": 1}}},
        {
            "name": "bad",
            "until": "100%",
            "objectives": {"teacherLogits": {"weight": 1}, **objectives},
        },
    ]
    run = make_run(phases=phases)
    with pytest.raises(BadInput, match=message):
        train_here(run)
    assert not (run.folder / "metrics.jsonl").exists()


def test_a_teacher_of_8_bits_a_weight_is_measured_as_it_is_asked(make_run, train_here, make_model):
    """Also where it is the model that the student began as."""
    run = make_run(steps=12)
    model = make_model()
    for name, weight in model.named_parameters():
        if name.endswith("proj.weight"):
            weight.data[:, 0] *= 50  # so that 8 bits are few for the rest of the row
    model.save_pretrained(run.root / "model")
    teacher = {"from": f"file://{run.root}/model", "precision": "Int8"}
    run = make_run(steps=12, teacher=teacher)
    result, reporter = train_here(run)
    assert reporter.progress.teacher is TeacherState.READY
    asked = Teacher(teacher["from"], None, 61, torch.device("cpu"), precision="Int8")
    asked.load()
    found = f"{perplexity(asked.model, run.held_out()).value:.2f}"
    assert result.evaluation.perplexity_teacher == found != result.evaluation.perplexity_original
