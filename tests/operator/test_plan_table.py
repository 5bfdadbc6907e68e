"""What `bitnetctl plan` prints: the ledger's own figures, within the terminal's width."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bitnet_crds import InvalidRun, parse_run, plan
from bitnet_crds.advice import Advice
from bitnet_operator.documents import read_document
from bitnet_operator.plan_table import render_plan, render_step

EXAMPLES = Path(__file__).parents[2] / "examples"


def full_run(**spec: Any) -> dict[str, Any]:
    """10 G tokens on two workers, with a teacher from 90 % on."""
    return {
        "apiVersion": "bitnet.training/v1alpha1",
        "kind": "BitNetRun",
        "metadata": {"name": "full", "namespace": "research"},
        "spec": {
            "model": {"from": "hf://organisation/model"},
            "quantization": {"lambdaWarmup": {"steps": 1000, "curve": "Cosine"}},
            "data": {"sequenceLength": 512, "sources": [{"name": "web", "uri": "file:///text"}]},
            "budget": {"tokens": "10G", "globalBatchSize": 1024},
            "schedule": {"warmupSteps": 1000},
            "phases": [
                {"name": "main", "until": "90%", "objectives": {"crossEntropy": {"weight": 1}}},
                {
                    "name": "distill",
                    "until": "100%",
                    "objectives": {
                        "crossEntropy": {"weight": 0},
                        "teacherLogits": {"weight": 0.5, "temperature": 2},
                    },
                },
            ],
            "teacher": {"from": "hf://organisation/teacher"},
            "workers": {"count": 2, "gpusPerWorker": 1, "microBatchSize": 32},
            "checkpoint": {"uri": "file:///runs", "everySteps": 2000},
            **spec,
        },
    }


def shown(document: dict[str, Any], *advice: Advice, width: int = 100) -> str:
    run = parse_run(document)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render_plan(run, plan(run.spec), advice))
    return console.export_text()


def test_a_micro_batch_that_is_to_be_found_has_no_number_yet() -> None:
    phases = copy.deepcopy(full_run()["spec"]["phases"])
    phases[1]["workers"] = {"microBatchSize": 8}
    text = shown(full_run(workers={"count": 2, "microBatchSize": "Auto"}, phases=phases))
    assert "1,024 = 2 workers x 1 process x 512; the micro batch is found by trying" in text
    rows = [line.split() for line in text.splitlines() if "crossEntropy" in line or "T 2" in line]
    assert ["Auto" in row for row in rows] == [True, False]
    assert {"8", "64"} <= set(rows[1])


@pytest.mark.parametrize(("parallelism", "part"), [("DDP", "all"), ("FSDP", "1/4")])
def test_says_what_a_process_holds(parallelism: str, part: str) -> None:
    workers = {"count": 4, "microBatchSize": 32, "parallelism": parallelism}
    assert f"{part} of weights, gradients and moments ({parallelism})" in shown(full_run(workers=workers))
    assert "held by a process" not in shown(full_run(workers={"count": 1, "microBatchSize": 32}))


def test_says_what_the_ledger_says() -> None:
    text = shown(full_run())
    assert "research/full: 19,073 steps, 9,999,745,024 tokens" in text
    assert "254,976 of the budget are less than a step" in text
    assert "1,024 sequences x 512 tokens = 524,288 tokens" in text
    assert "1,024 = 2 workers x 1 process x micro batch 32 x accumulation 16" in text
    assert "hf://organisation/teacher, loaded at step 17,165 (Deferred)" in text
    assert "AbsMean weights, 8-bit activations" in text
    assert "rises to 0.001 in 1,000 steps, falls to 0 from step 15,259" in text
    assert "0 to 1 over 1,000 steps, cosine" in text
    assert "every 2,000 steps in /runs, the newest 3 kept" in text


def test_a_tuned_teacher_has_a_line_of_its_own() -> None:
    tune = {"tokens": "1G", "learningRate": 5e-5}
    text = " ".join(shown(full_run(teacher={"from": "hf://a/b", "tune": tune}), width=200).split())
    assert "its tuning 999,817,216 tokens in 1,907 steps before the run; rises to 5e-05 in 95 steps, " in text
    assert "falls to 0 from step 95 along a cosine; micro batch 32 x accumulation 16" in text
    assert "research/full: 19,073 steps, 9,999,745,024 tokens" in text
    assert "its tuning" not in shown(full_run())


def test_a_phase_begins_and_ends_where_the_ledger_says() -> None:
    lines = shown(full_run()).splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith("distill"))
    assert lines[begin].split() == [
        "distill",
        "17,165",
        *["teacherLogits", "0.5,", "T", "2", "16", "32", "yes", "0.0005", "1"],
    ]
    assert lines[begin + 1].split() == ["19,072", "2.62e-07"]


def test_an_objective_without_weight_is_not_shown() -> None:
    distill = next(line for line in shown(full_run()).splitlines() if line.startswith("distill"))
    assert "crossEntropy" not in distill


def test_without_a_teacher_or_a_warmup_none_is_spoken_of() -> None:
    document = full_run(phases=full_run()["spec"]["phases"][:1])
    document["spec"]["phases"][0]["until"] = "100%"
    del document["spec"]["teacher"], document["spec"]["quantization"], document["spec"]["schedule"]
    text = shown(document)
    assert "loaded at step" not in text
    assert any(line.split() == ["teacher", "Never"] for line in text.splitlines())
    assert "mixture" not in text
    assert "1 from the first step: ternary throughout" in text
    assert "0.001 from the first step, falls to 0" in text


def test_muons_rate_is_shown_beside_adamws() -> None:
    muon = full_run(optimizer={"name": "MuonClip", "muonLearningRate": 0.02, "clippingThreshold": 10})
    assert "0.02 where the other is 0.001; attention logits kept to 10" in shown(muon)
    assert "Muon" not in shown(full_run())
    assert step_shown(muon, 499)["Muon's rate"] == "0.01"


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"decayCurve": "OneMinusSqrt", "finalShare": 0.1}, "falls to 0.0001 from step 15,259 as 1 - sqrt"),
        ({"name": "Cosine", "warmupSteps": 100}, "100 steps, falls to 0 from step 100 along a cosine"),
        ({"name": "Linear"}, "0.001 from the first step, falls to 0 from step 0"),
        ({"decayFraction": 0}, "then holds"),
        ({"finalShare": 1}, "then holds"),
    ],
)
def test_how_the_rate_falls_is_shown(schedule: dict[str, Any], words: str) -> None:
    assert words in " ".join(shown(full_run(schedule=schedule)).split())


def test_a_lambda_that_never_reaches_1_is_spoken_of() -> None:
    text = shown(full_run(quantization={"lambdaWarmup": {"steps": 20_000}}))
    assert "the run ends before it is 1" in text


def test_advice_names_field_mend_and_source() -> None:
    advice = Advice("spec.optimizer.adamLearningRate", "it is low", "Write 0.001", "arXiv 2504.12285")
    text = shown(full_run(), advice)
    assert "advice spec.optimizer.adamLearningRate: it is low. Write 0.001. (arXiv 2504.12285)" in text


def test_the_full_run_of_the_examples_comes_out_as_it_says() -> None:
    text = shown(read_document(EXAMPLES / "full-run.yaml"))
    assert ": 19,073 steps" in text
    assert "1,024 = 2 workers x 1 process x micro batch 32 x accumulation 16" in text
    assert "loaded at step 17,165" in text


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_fits_a_terminal(path: Path) -> None:
    assert "…" not in shown(read_document(path), width=80)


@pytest.mark.parametrize("width", [80, 100])
def test_nothing_is_cut_off(width: int) -> None:
    """Names of ordinary length fit; `…` would mean that a figure was lost."""
    text = shown(full_run(), width=width)
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width


SOURCES = [{"name": "web", "uri": "file:///web", "weight": 3}, {"name": "code", "uri": "file:///code"}]
FADE = {"steps": 10, "curve": "Cosine"}


def blended() -> dict[str, Any]:
    """The full run with two sources, a correction, and a last phase that comes over in ten steps."""
    document = full_run(
        quantization={"weights": "Haar", "lowRankCorrection": {"ratio": 0.1}},
        export={"formats": ["Packed"]},
        data={"sequenceLength": 512, "sources": SOURCES},
    )
    document["spec"]["phases"][1] |= {"transition": FADE, "mixture": {"code": 1}}
    return document


def test_a_transition_shows_from_where_to_where() -> None:
    text = shown(blended())
    for words in ("crossEntropy 1 -> 0", "teacherLogits 0 -> 0.5, T 2", "over 10 steps, cosine"):
        assert words in text


def test_what_the_student_is_made_of() -> None:
    text = shown(blended(), width=160)
    assert "Haar weights" in text
    assert "low-rank correction: ratio 0.1, Residual; only what is new trains" in text
    preset = full_run(model={"preset": "BitNetLlama-1M", "tokenizer": "file:///tokenizer"})
    assert "BitNetLlama-1M, from random weights, tokenizer of /tokenizer" in shown(preset, width=160)


def test_the_mixture_is_shown_by_phase_where_phases_differ() -> None:
    text = shown(blended())
    assert "main: web 75%, code 25%" in text
    assert "distill: code 100%" in text
    mixture = {"policy": "Influence", "everySteps": 50}
    data = {"sequenceLength": 512, "sources": SOURCES, "mixture": mixture}
    follows = "web 75%, code 25% at first, then by influence every 50 steps"
    assert follows in shown(full_run(data=data))


def test_where_the_text_is_and_how_much_of_a_dataset_is_read_at_most() -> None:
    news = {"uri": "hf://a/news", "subset": "en", "revision": "v2", "field": "body", "weight": 3}
    sources = [{"name": "news", **news}, {"name": "books", "uri": "gs://bucket/books"}]
    text = shown(full_run(data={"sequenceLength": 512, "sources": sources}), width=200)
    # 19,073 x 1,024 sequences x 3/4, and what rounding may add in each of two phases.
    most = f"{(19_073 * 1024 * 3 // 4 + 2 * 2) * 512:,}"
    assert (
        f"news: hf://a/news, subset en, split train, revision v2, field body, streamed, {most} tokens at most"
        in text
    )
    assert "books: gs://bucket/books" in [line[15:].strip() for line in text.splitlines()]
    assert "streamed" not in shown(full_run(), width=200)


def step_shown(document: dict[str, Any], step: int) -> dict[str, str]:
    """What `--step` prints, by its first column."""
    run = parse_run(document)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render_step(run, plan(run.spec), step))
    return {line[:15].strip(): line[15:].strip() for line in console.export_text().splitlines()[2:]}


def test_a_step_shows_all_that_holds_in_it() -> None:
    document = blended()
    ledger = plan(parse_run(document).spec)
    figures = step_shown(document, 17_165 + 4)
    weights = ledger.weights_at(17_165 + 4)
    assert weights == {"crossEntropy": pytest.approx(0.5), "teacherLogits": pytest.approx(0.25)}
    assert figures["phase"] == "distill"
    assert (figures["crossEntropy"], figures["teacherLogits"]) == ("0.5", "0.25")
    assert figures["learning rate"] == f"{ledger.learning_rate.at(17_169):.3g}"
    assert (figures["lambda"], figures["teacher"]) == ("1", "in memory")
    assert figures["global batch"].endswith("micro batch 16 x accumulation 32")
    assert figures["mixture"] == "code 100%"
    assert step_shown(document, 0)["teacher"] == "not in memory"


def test_a_step_shows_which_weight_is_a_share_of_a_gradient() -> None:
    document = read_document(EXAMPLES / "tcs-distillation.yaml")
    figures = step_shown(document, 15_000)
    assert figures["blockAttention"] == "0.1 of crossEntropy's gradient"
    assert (figures["teacherLogits"], figures["maskedDiffusion"]) == ("1", "0")
    # In the step before the transition nothing is there of what comes, and in its last nothing of what was.
    assert "blockAttention" not in step_shown(document, 9_535)
    assert step_shown(document, 9_536)["blockAttention"] == "0.0002 of crossEntropy's gradient"
    assert step_shown(document, 10_035) == step_shown(document, 10_036)


@pytest.mark.parametrize("step", [-1, 19_073])
def test_a_step_outside_the_run_is_a_mistake(step: int) -> None:
    with pytest.raises(InvalidRun, match=rf"--step: the run has no step {step}\. Write one from 0 to 19,072"):
        step_shown(full_run(), step)
