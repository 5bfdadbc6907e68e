"""A teacher that is tuned before the run: trained as it is, kept whole, and then the one distilled from."""

import json
import shutil
from dataclasses import replace
from statistics import mean

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bitnet_crds.carried_out import carried_out
from bitnet_crds.protocol import ExitCode, TrainerState
from bitnet_trainer.compare import load_any
from bitnet_trainer.errors import BadInput, TeacherUnavailable
from bitnet_trainer.export.huggingface import export_huggingface
from bitnet_trainer.export.trained import load_trained
from bitnet_trainer.models.convert import convert
from bitnet_trainer.outcome import exit_code_of
from lives import Kill, live
from measuring import perplexity

STEPS = 16
TUNE = {"tokens": STEPS * 8 * 16, "learningRate": 0.01}


@pytest.fixture
def make_tuned(make_run):
    """Makes a run whose teacher is tuned; `tune` is laid over the tuning, `changes` as in `make_run`."""

    def make(name="tiny", tune=None, **changes):
        root = make_run(name=name).root
        teacher = {"from": f"file://{root}/teacher", **changes.pop("teacher", {})}
        return make_run(name=name, teacher={**teacher, "tune": {**TUNE, **(tune or {})}}, **changes)

    return make


def tuning(run):
    """The order that tunes the teacher of a run."""
    return replace(run, order=run.order.model_copy(update={"purpose": "TuneTeacher"}))


def carried(run):
    """The tuning as a run of its own: its folder, metrics, checkpoints."""
    root = run.root / "tuned"
    (root / run.order.name).mkdir(parents=True, exist_ok=True)
    return replace(run, root=root, order=carried_out(tuning(run).order))


def weights_in(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def teacher_of(run):
    return weights_in(run.folder / "teacher")


def differing(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def distilled(run):
    """The loss of the teacher's logits at each step that has it."""
    return [
        record.objectives["teacherLogits"].raw
        for record in run.metrics()
        if "teacherLogits" in record.objectives
    ]


def test_a_teacher_is_tuned_as_it_is_and_written_whole(make_tuned, train_here):
    run = make_tuned()
    result, reporter = train_here(tuning(run))
    assert (result.stopped, result.boundary) == (False, False)
    address = f"file://{run.root}/runs/default/tiny/teacher"
    assert result.artifacts == {
        "Teacher": address,
        "LossPlot": f"{run.folder}/teacher-tuning/loss.png",
    }
    records = carried(run).metrics()
    assert [record.step for record in records] == list(range(1, STEPS + 1))
    assert mean(record.loss for record in records[-3:]) < 0.8 * mean(record.loss for record in records[:3])
    assert {record.quantization_lambda for record in records} == {0.0}
    assert [record.learning_rate for record in records] == [
        run.order.plan.tuning.learning_rate.at(step) for step in range(STEPS)
    ]
    assert carried(run).checkpoints() == [f"step-{step:08d}" for step in (15, 16)]
    assert [path.name for path in run.folder.iterdir() if path.name.startswith("checkpoints")] == []

    tuned, tokenizer = load_any(address)
    assert type(tuned).__name__ == "LlamaForCausalLM"
    assert not hasattr(tuned.config, "quantization_config")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(run.root / "model").get_vocab()
    assert len(differing(tuned.state_dict(), weights_in(run.root / "teacher"))) > 10
    assert result.evaluation.perplexity_teacher == f"{perplexity(tuned, run.held_out()).value:.2f}"
    assert result.evaluation.perplexity_after is None
    as_published = perplexity(load_any(str(run.root / "teacher"))[0], run.held_out()).value
    assert f"held-out perplexity is {as_published:.2f} as published" in result.message
    assert reporter.progress.state is TrainerState.FINISHED

    record = json.loads((run.folder / "teacher-tuning/run.json").read_text())
    assert (record["convertedLayers"], record["baseline"]["quantized"]) == (0, None)
    with pytest.raises(BadInput, match=r"teacher-tuning is where a teacher was tuned"):
        load_trained(run.folder / "teacher-tuning")


def test_tuning_that_was_killed_ends_as_if_it_had_not_been(make_tuned, train_here, weights_of):
    whole, parts = make_tuned("whole"), make_tuned("parts")
    train_here(tuning(whole))
    for kill in (Kill(3), Kill(8), Kill(13)):
        assert live(tuning(parts).order, kill) == -9
        assert not (parts.folder / "teacher").exists()
    assert live(tuning(parts).order) == 0
    assert differing(teacher_of(parts), teacher_of(whole)) == []
    assert differing(weights_of(carried(parts)), weights_of(carried(whole))) == []
    assert carried(parts).figures() == carried(whole).figures()


def test_a_tuned_teacher_that_is_there_is_not_tuned_again(make_tuned, train_here):
    run = make_tuned()
    first, _ = train_here(tuning(run))
    before = {path: path.stat().st_mtime_ns for path in (run.folder / "teacher").iterdir()}
    # What it began as may be gone.
    shutil.rmtree(run.root / "teacher")
    shutil.rmtree(run.folder / "teacher-tuning")
    result, reporter = train_here(tuning(run))
    assert result.artifacts == {"Teacher": first.artifacts["Teacher"]}
    assert not result.stopped
    assert result.message.endswith("is there already, and nothing is trained")
    assert {path: path.stat().st_mtime_ns for path in (run.folder / "teacher").iterdir()} == before
    assert not (run.folder / "teacher-tuning").exists()
    assert TrainerState.TRAINING not in {seen.state for seen in reporter.seen}


def test_one_tuned_otherwise_is_tuned_anew(make_tuned, train_here):
    train_here(tuning(make_tuned()))
    run = make_tuned(tune={"learningRate": 0.02})
    alone = make_tuned("alone", tune={"learningRate": 0.02})
    old = teacher_of(run)
    result, _ = train_here(tuning(run), stop_at=7)
    assert result.stopped
    assert differing(teacher_of(run), old) == []
    for each in (run, alone):
        train_here(tuning(each))
    assert differing(teacher_of(run), teacher_of(alone)) == []
    assert len(carried(run).metrics()) == STEPS


def test_half_a_tuning_of_something_else_is_not_thrown_away(make_tuned, train_here):
    train_here(tuning(make_tuned()), stop_at=7)
    with pytest.raises(BadInput, match=r"teacher-tuning/checkpoints/step-00000007 was written under ledger"):
        train_here(tuning(make_tuned(tune={"learningRate": 0.02})))


def test_the_student_learns_from_the_tuned_teacher(make_tuned, make_run, train_here):
    """As from any teacher of these weights, and otherwise than from the one that was published."""
    run = make_tuned()
    train_here(tuning(run))
    result, _ = train_here(run)
    shutil.copytree(run.folder / "teacher", run.root / "elsewhere")
    as_file = make_run(name="as-file", teacher={"from": f"file://{run.root}/elsewhere"})
    untuned = make_run(name="untuned")
    for other in (as_file, untuned):
        train_here(other)
    assert len(distilled(run)) == 3
    assert distilled(run) == distilled(as_file)
    assert all(one != other for one, other in zip(distilled(run), distilled(untuned), strict=True))
    tuned = perplexity(load_any(str(run.folder / "teacher"))[0], run.held_out()).value
    assert result.evaluation.perplexity_teacher == f"{tuned:.2f}"


def test_its_kept_logits_are_the_tuned_ones(make_tuned, train_here, make_run):
    top_k = {"weight": 1, "topK": 5}
    phases = [{"name": "all", "until": "100%", "objectives": {"teacherLogits": top_k}}]
    kept = make_tuned("kept", teacher={"cacheLogits": True}, phases=phases)
    asked = make_tuned("asked", phases=phases)
    # Those of the teacher as it was published lie there already.
    untuned = make_run(
        name="kept", teacher={"from": f"file://{kept.root}/teacher", "cacheLogits": True}, phases=phases
    )
    train_here(untuned)
    shutil.rmtree(untuned.folder / "checkpoints")
    for run in (kept, asked):
        train_here(tuning(run))
        train_here(run)
    assert distilled(kept) == distilled(asked)
    assert len(list((kept.folder / "teacher-logits").iterdir())) == 2


def test_without_its_tuned_teacher_no_step_is_trained(make_tuned, train_here):
    run = make_tuned()
    with pytest.raises(TeacherUnavailable, match=r"no tuned one in file://.*/teacher. Restore it") as caught:
        train_here(run)
    assert exit_code_of(caught.value) == ExitCode.TEACHER_UNAVAILABLE
    assert not run.folder.exists()
    train_here(tuning(run))
    (run.folder / "teacher/TUNED").unlink()
    with pytest.raises(TeacherUnavailable, match="there is no tuned one"):
        train_here(run)


@pytest.mark.parametrize("what", ["text", "seed", "tuning"])
def test_a_teacher_tuned_on_something_else_is_not_taken(make_tuned, train_here, what):
    run = make_tuned()
    train_here(tuning(run))
    if what == "text":
        with (run.root / "counting.txt").open("a") as text:
            text.write(" w2" * 200)
    other = {"text": {}, "seed": {"seed": 1}, "tuning": {"tune": {"warmupFraction": 0.5}}}[what]
    with pytest.raises(TeacherUnavailable, match=r"was tuned as \w+, and this run asks for"):
        train_here(make_tuned(**other))


def test_a_teacher_that_does_not_fit_is_found_before_it_is_tuned(make_tuned, train_here, tokenizer):
    run = make_tuned()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(run.root / "teacher")
    with pytest.raises(TeacherUnavailable, match="has token 'more' at 61 and the student at none"):
        train_here(tuning(run))
    shutil.rmtree(run.root / "teacher")
    with pytest.raises(TeacherUnavailable, match="the teacher cannot be loaded: there is no model at"):
        train_here(tuning(run))
    assert not (run.folder / "teacher-tuning").exists()


def test_the_text_is_read_by_the_students_tokenizer(make_tuned, train_here):
    """A teacher need not bring one, where its vocabulary is as large."""
    run = make_tuned()
    for file in (run.root / "teacher").glob("tokenizer*"):
        file.unlink()
    train_here(tuning(run))
    train_here(run)
    assert load_any(str(run.folder / "teacher"))[1].get_vocab()


def test_a_quantised_teacher_is_refused(make_tuned, make_model, train_here, tokenizer):
    run = make_tuned()
    model = make_model(seed=1)
    export_huggingface(model, tokenizer, convert(model), run.root / "teacher")
    with pytest.raises(TeacherUnavailable, match="is quantised, and one is tuned in full precision"):
        train_here(tuning(run))


def test_a_launcher_goes_on_with_it_on_two_ranks_and_reports_it(make_tuned, train_here, ended):
    alone, run = make_tuned("alone"), make_tuned()
    train_here(tuning(alone))
    _, reporter = train_here(tuning(run), stop_at=7)
    address = f"file://{run.root}/runs/default/tiny"
    assert reporter.progress.checkpoint.uri == f"{address}/teacher-tuning/checkpoints/step-00000007"
    pair = make_tuned(workers=2)
    spec = pair.order.spec
    workers = spec.workers.model_copy(update={"parallelism": "FSDP"})
    pair.order = pair.order.model_copy(update={"spec": spec.model_copy(update={"workers": workers})})
    assert ended(tuning(pair).launch(), 180) == ExitCode.SUCCEEDED
    assert {record.world_size for record in carried(pair).metrics()[7:]} == {2}
    word = pair.last_word()
    assert (word.reason, word.step, word.artifacts["Teacher"]) == ("Succeeded", STEPS, f"{address}/teacher")
    assert word.checkpoint.uri == f"{address}/teacher-tuning/checkpoints/step-00000016"
    assert word.evaluation.perplexity_teacher is not None
    for name, expected in teacher_of(alone).items():
        torch.testing.assert_close(teacher_of(pair)[name], expected, atol=1e-3, rtol=0)


def test_in_a_bucket_it_is_tuned_on_one_machine_and_learned_from_on_another(make_tuned, bucket, train_here):
    here = make_tuned("here")
    checkpoint = {"uri": f"gs://{bucket.bucket}/runs", "everySteps": 5}
    far = make_tuned("far", checkpoint=checkpoint)
    train_here(tuning(here))
    train_here(tuning(far), stop_at=7)
    shutil.rmtree(far.root / "scratch")
    result, _ = train_here(tuning(far))
    address = f"gs://{bucket.bucket}/runs/default/far"
    assert result.artifacts == {
        "Teacher": f"{address}/teacher",
        "LossPlot": f"{address}/teacher-tuning/loss.png",
    }
    assert differing(load_any(f"{address}/teacher")[0].state_dict(), teacher_of(here)) == []
    shutil.rmtree(far.root / "scratch")
    assert train_here(tuning(far))[0].artifacts == {"Teacher": f"{address}/teacher"}
    shutil.rmtree(far.root / "scratch")
    for run in (here, far):
        train_here(run)
    assert distilled(far) == distilled(here)


def test_tuning_and_run_read_the_same_text_of_a_dataset(make_tuned, hub, train_here):
    """Of the same commit, and as much as the longer one asks for: else the one's held-out tail were text that
    the other trains on."""
    lines = "".join(
        json.dumps({"text": " ".join(f"w{2 + (line + n) % 40}" for n in range(31))}) + "\n"
        for line in range(1000)
    )
    hub.write("a/b", {"train.jsonl": lines.encode()})
    data = {"sequenceLength": 16, "sources": [{"name": "web", "uri": "hf://a/b"}], "heldOut": "10%"}
    run = make_tuned(data=data, steps=4)
    train_here(tuning(run))
    hub.write("a/b", {"train.jsonl": (lines + lines).encode()})
    result, _ = train_here(run)
    assert not result.stopped
    read = [
        json.loads((folder / "run.json").read_text())
        for folder in (run.folder, run.folder / "teacher-tuning")
    ]
    assert read[0]["sources"] == read[1]["sources"]
    assert read[0]["dataFingerprint"] == read[1]["dataFingerprint"]
