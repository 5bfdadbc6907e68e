"""Micro batches found by trying, in whole runs: each phase's own, and nothing else changes."""

import json

import pytest
import torch

from bitnet_crds.adjustments import Adjustments
from bitnet_crds.plan import plan
from bitnet_crds.protocol import ExitCode
from bitnet_trainer import run as run_module
from bitnet_trainer.fitting import DeviceMemory, Fitting
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.outcome import exit_code_of, failure_report
from bitnet_trainer.quantization.bitlinear import QuantizationLambda
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.report import read_metrics
from bitnet_trainer.step import Stepper
from in_process import StopsAt, train_in_process

AUTO = {"gpus": 1, "micro": "Auto"}
DISTILLED = {
    "crossEntropy": {"weight": 1},
    "teacherLogits": {"weight": 0.5, "topK": 5, "temperature": 2},
    "hiddenStates": {"weight": 0.3, "weighting": "GradientRatio"},
}
MASKED = {"crossEntropy": {"weight": 1}, "maskedDiffusion": {"weight": 0.5, "maskToken": "w60"}}
PHASES = [
    {"name": "diffuse", "until": "30%", "objectives": MASKED},
    {"name": "distill", "until": "100%", "transition": {"steps": 4}, "objectives": DISTILLED},
]
MUONCLIP = {"name": "MuonClip", "muonLearningRate": 0.01, "adamLearningRate": 5e-3, "clippingThreshold": 0.05}


@pytest.fixture
def fitting(monkeypatch):
    """`fitting(4, 2)`: the processor stands for a GPU, on which passes of so many sequences fit without the
    teacher and with it. The tries are remembered: size, teacher, lambda and objectives."""
    join, rehearse, call = Ranks.join, Stepper.rehearse, Stepper.__call__
    monkeypatch.setattr(Ranks, "join", lambda _gpus: join(0))

    def limit(alone, taught):
        tried = []

        def check(step):
            size, most = len(step.micro_batches[0]), alone if step.teacher is None else taught
            if size > most:
                raise torch.OutOfMemoryError(f"{size} sequences, and {most} fit")
            return size

        def trying(self, step, weights):
            lam = next((part for part in self.model.modules() if isinstance(part, QuantizationLambda)), None)
            lam = lam and lam.value.item()
            tried.append((len(step.micro_batches[0]), step.teacher is not None, lam, set(weights)))
            rehearse(self, step, weights)
            check(step)

        def stepping(self, step, weights):
            check(step)
            return call(self, step, weights)

        monkeypatch.setattr(Stepper, "rehearse", trying)
        monkeypatch.setattr(Stepper, "__call__", stepping)
        return tried

    return limit


def as_found(run, **found):
    """The run as the next segment is ordered, when it was told what fits."""
    run.order = run.order.model_copy(
        update={"plan": plan(run.order.spec, Adjustments(micro_batches=found)), "job": "tiny-1"}
    )
    return run


def test_each_phase_has_the_largest_that_fits_with_its_teacher_and_it_is_told(make_run, train_here, fitting):
    tried = fitting(5, 2)
    run = make_run(steps=12, **AUTO)
    result, reporter = train_here(run)
    assert not result.stopped
    shapes = {record.phase: (record.micro_batch_size, record.accumulation) for record in run.metrics()}
    assert shapes == {"warmup": (4, 2), "main": (4, 2), "distill": (2, 4)}
    found = {"warmup": 4, "main": 4, "distill": 2}
    assert reporter.progress.micro_batches == found
    assert [size for size, *_ in tried] == [1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4]
    assert [size for size, teacher, *_ in tried if teacher] == [1, 2, 4]
    # By the lambda of the phase's first step: passes below 1 take more memory than those at 1.
    assert [lam for _, _, lam, _ in tried] == [0.0] * 4 + [0.75] * 4 + [1.0] * 3
    first = next(seen for seen in reporter.seen if "distill" in seen.micro_batches)
    assert (first.step, first.micro_batch_size, first.accumulation) == (9, 2, 4)
    assert failure_report(RuntimeError(), 0, reporter.progress).micro_batches == found
    assert [record.step for record in run.metrics()] == list(range(1, 13))


def test_nothing_is_evaluated_by_a_size_that_nobody_tried(make_run, train_here, fitting, monkeypatch):
    """The planned one may be far more than fits."""
    fitting(8, 8)
    sizes, real = [], run_module.measure

    def measure(model, rows, size, ranks):
        sizes.append(size)
        return real(model, rows, size, ranks)

    monkeypatch.setattr(run_module, "measure", measure)
    train_here(make_run(steps=4, **AUTO))
    assert set(sizes) == {1}


def test_a_tuning_of_the_teacher_tries_too(make_run, train_here, fitting):
    fitting(4, 0)
    first = make_run()
    teacher = {"from": f"file://{first.root}/teacher", "tune": {"tokens": 3 * 8 * 16}}
    run = make_run(teacher=teacher, **AUTO)
    run.order = run.order.model_copy(update={"purpose": "TuneTeacher"})
    _, reporter = train_here(run)
    assert reporter.progress.micro_batches == {"tuning": 4}
    tuned = read_metrics(run.folder / "teacher-tuning" / "metrics.jsonl")
    assert [(record.micro_batch_size, record.accumulation) for record in tuned] == [(4, 2)] * 3


def test_memory_that_runs_out_though_it_was_foreseen_to_suffice_tells_what_had_fitted(
    make_run, fitting, monkeypatch
):
    """As sharded ranks may have it. The next segment has half of that."""
    fitting(8, 8)
    search = Fitting.search

    def short(self, only):
        if self._teacher is None:
            return search(self, only)
        self.found = 2
        raise torch.OutOfMemoryError("in a collective")

    monkeypatch.setattr(Fitting, "search", short)
    run = make_run(steps=12, **AUTO)
    reporter = StopsAt(run.order, None)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train_in_process(run.order, monkeypatch, reporter)
    report = failure_report(caught.value, 0, reporter.progress)
    assert report.step == 9, "the phase that it is about begins there"
    assert report.micro_batches == {"warmup": 8, "main": 8, "distill": 2}
    assert "with a micro batch of 2 sequences" in report.message


def test_what_is_known_is_not_tried_again(make_run, train_here, fitting):
    tried = fitting(8, 8)
    run = as_found(make_run(steps=12, **AUTO), warmup=4, main=2)
    _, reporter = train_here(run)
    assert {teacher for _, teacher, *_ in tried} == {True}
    assert reporter.progress.micro_batches == {"distill": 8}
    assert [record.micro_batch_size for record in run.metrics()] == [4] * 3 + [2] * 6 + [8] * 3


A_SEQUENCE = 2**30


@pytest.fixture
def replays(fitting, monkeypatch):
    """`fitting`, where a device has room for 20 sequences, and those with a teacher take double; and what
    layers, which are as if compiled, are told: whether they are replayed."""
    tried, told = fitting(8, 8), []

    class Memory(DeviceMemory):
        available, held = 20 * A_SEQUENCE, 0

        @property
        def peak(self):
            size, teacher, *_ = tried[-1]
            return size * A_SEQUENCE * (1 + teacher)

    monkeypatch.setattr("bitnet_trainer.fitting.DeviceMemory", Memory)
    monkeypatch.setattr(LanguageModel, "compiled", True)
    monkeypatch.setattr(LanguageModel, "replay", lambda _self, replayed: told.append(replayed))
    return tried, told


def test_layers_are_replayed_where_graphs_have_room(make_run, train_here, replays):
    """They have none while sizes are tried; a process that goes on tries what it was told, and no more."""
    tried, told = replays
    run = make_run(steps=12, **AUTO)
    result, reporter = train_here(run, stop_at=6)
    assert result.stopped
    assert told == [False, True] * 2
    tried.clear()
    told.clear()
    train_here(as_found(run, **reporter.progress.micro_batches))
    assert [size for size, *_ in tried] == [8, 1, 2, 4, 8]
    assert told == [False, True, False, False]


@pytest.mark.usefixtures("replays")
def test_memory_that_runs_out_while_a_known_size_is_tried_leaves_it_known(make_run, monkeypatch):
    def short(_self, _only):
        raise torch.OutOfMemoryError("of moments")

    monkeypatch.setattr(Fitting, "search", short)
    run = as_found(make_run(steps=12, **AUTO), warmup=4, main=4, distill=4)
    reporter = StopsAt(run.order, None)
    with pytest.raises(torch.OutOfMemoryError):
        train_in_process(run.order, monkeypatch, reporter)
    assert reporter.progress.micro_batches == {}


def test_a_micro_batch_that_is_written_is_not_tried(make_run, train_here, replays, monkeypatch):
    tried, told = replays
    train_here(make_run(steps=12, gpus=1, micro=4))
    assert not tried
    assert told == [True] * 3
    monkeypatch.setenv("TORCHINDUCTOR_CUDAGRAPHS", "0")
    train_here(as_found(make_run(name="without", steps=12, **AUTO), warmup=4, main=4, distill=4))
    assert not tried
    assert told[3:] == [False] * 3


def kept_logits(run):
    """What the run keeps of its teacher's answers, by file."""
    files = (path for path in (run.folder / "teacher-logits").rglob("*") if path.is_file())
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("optimizer", "documents"),
    [({"name": "AdamW"}, "Joined"), (MUONCLIP, "Separate")],
    ids=["AdamW", "MuonClip"],
)
def test_a_run_that_tries_is_bit_equal_to_one_that_knows(
    make_run, train_here, fitting, weights_of, optimizer, documents
):
    """Weights, moments, random states, averages, the cursor, measured weights, kept logits and every figure:
    also where it stops at a phase that was tried, and goes on with what was found."""
    tried = fitting(4, 2)
    first = make_run()
    config = first.root / "model" / "config.json"
    config.write_text(config.read_text().replace('"attention_dropout": 0.0', '"attention_dropout": 0.1'))
    data = first.order.spec.data.model_dump(by_alias=True)
    changes = {
        "steps": 14,
        **AUTO,
        "phases": PHASES,
        "averaging": {"decay": 0.9},
        "teacher": {"from": f"file://{first.root}/teacher", "cacheLogits": True},
        "optimizer": optimizer,
        "data": {**data, "documents": documents},
    }
    knows = as_found(make_run(name="knows", **changes), diffuse=4, distill=2)
    train_here(knows)
    assert not tried
    tries, stops = make_run(name="tries", **changes), make_run(name="stops", **changes)
    train_here(tries)
    assert [size for size, *_ in tried] == [1, 2, 4, 8, 1, 2, 4]
    assert tried[-1][-1] == {*MASKED, *DISTILLED}, "what fades out is there too"
    result, reporter = train_here(stops, stop_at=6)
    assert result.stopped
    train_here(as_found(stops, **reporter.progress.micro_batches))
    expected, kept = weights_of(knows), kept_logits(knows)
    assert kept
    for other in (tries, stops):
        ours = weights_of(other)
        assert ours.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(ours[name], expected[name])] == []
        assert other.figures() == knows.figures()
        assert kept_logits(other) == kept


def test_where_not_even_one_sequence_fits_the_step_runs_out_of_memory(make_run, train_here, fitting):
    fitting(8, 0)
    run = make_run(steps=12, **AUTO)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train_here(run)
    assert exit_code_of(caught.value) == ExitCode.OUT_OF_MEMORY
    assert [record.phase for record in run.metrics()] == ["warmup"] * 3 + ["main"] * 6


def test_a_request_to_stop_while_sizes_are_tried_is_heard(make_run, train_here, fitting, monkeypatch):
    """The checkpoint is of the step that the phase begins at, and what was not found is not told."""
    fitting(8, 8)
    run = make_run(steps=12, **AUTO)
    trying = Stepper.rehearse
    requests = []
    monkeypatch.setattr("bitnet_trainer.stop.StopRequest.deferred", remembered(requests), raising=True)

    def stopping(self, step, weights):
        trying(self, step, weights)
        if step.teacher is not None:
            requests[0].requested = True

    monkeypatch.setattr(Stepper, "rehearse", stopping)
    result, reporter = train_here(run)
    assert result.stopped
    assert reporter.progress.micro_batches == {"warmup": 8, "main": 8}
    assert run.checkpoints()[-1] == "step-00000009"


def remembered(requests):
    """StopRequest.deferred, whose request is kept for a test to set."""
    from bitnet_trainer.stop import StopRequest

    deferred = StopRequest.deferred

    def keep(self):
        requests.append(self)
        return deferred(self)

    return keep


TWO_RANKS = """
import json, os, sys, torch
from pathlib import Path
from bitnet_crds.protocol import Order, Progress
from bitnet_trainer import fitting
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.report import Reporter
from bitnet_trainer.run import train
from bitnet_trainer.step import Stepper
from bitnet_trainer.stop import StopRequest

torch.set_num_threads(1)
ranks = Ranks.join(0)
Ranks.join = lambda _: ranks
rehearse, tried, sharded = Stepper.rehearse, [], False
A_SEQUENCE = 2**30

class Memory(fitting.DeviceMemory):
    available = 5.5 * A_SEQUENCE
    held = 0

    @property
    def peak(self):
        # The second rank has other neighbours.
        return tried[-1] * A_SEQUENCE * (1 + ranks.rank) if sharded else 0

def trying(self, step, weights):
    tried.append(len(step.micro_batches[0]))
    if not sharded and tried[-1] > (4, 1)[ranks.rank]:
        raise torch.OutOfMemoryError("on this rank alone")
    rehearse(self, step, weights)

Stepper.rehearse, fitting.DeviceMemory = trying, Memory
said = []
for described in json.loads(Path(sys.argv[0]).with_suffix(".json").read_text()):
    order = Order.model_validate(described)
    tried.clear()
    sharded = order.spec.workers.parallelism == "FSDP"
    reporter = Reporter(Progress(total_steps=order.plan.total_steps, phase=order.plan.phases[0].name))
    train(order, reporter, StopRequest())
    said.append({"found": reporter.progress.micro_batches, "tried": list(tried)})
(Path(sys.argv[0]).parent / f"said-{ranks.rank}.json").write_text(json.dumps(said))
ranks.wait()
os._exit(0)
"""


def test_ranks_agree_on_what_fits_on_all_of_them(make_run, ended):
    """Under DDP a rank runs out of memory alone; under FSDP none may, and sizes are refused before."""
    orders = []
    for how in ("DDP", "FSDP"):
        changes = {"steps": 8, "workers": 2, "parallelism": how, "optimizer": MUONCLIP, **AUTO}
        tries = make_run(name=f"tries-{how.lower()}", **changes)
        found = dict.fromkeys(("warmup", "main", "distill"), 1 if how == "DDP" else 2)
        knows = as_found(make_run(name=f"knows-{how.lower()}", **changes), **found)
        orders.append((tries, knows, found))
    root = tries.root
    worker = root / "worker.py"
    worker.write_text(TWO_RANKS)
    described = [json.loads(run.order.model_dump_json(by_alias=True)) for pair in orders for run in pair[:2]]
    worker.with_suffix(".json").write_text(json.dumps(described))
    assert ended(tries.launch(worker), 200) == 0
    said = [json.loads((root / f"said-{rank}.json").read_text()) for rank in (0, 1)]
    for number, (tries, knows, found) in enumerate(orders):
        assert [each[2 * number]["found"] for each in said] == [found, found]
        tried = [1, 2] * 3
        assert [each[2 * number]["tried"] for each in said] == [tried, tried]
        assert said[0][2 * number + 1] == {"found": {}, "tried": []}
        assert tries.figures() == knows.figures()
