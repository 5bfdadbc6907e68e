"""The micro batch that Auto finds on CUDA, where memory bounds it: it trains, and a larger one does not; and
where it leaves room, CUDA graphs fit."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from bitnet_crds.plan import PlannedPhase
from bitnet_crds.shapes import Shape
from bitnet_trainer.batch import Rows
from bitnet_trainer.fitting import HEADROOM, DeviceMemory, Fitting
from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.objectives.manager import ObjectiveManager
from bitnet_trainer.objectives.teacher_logits import TeacherLogitsObjective
from bitnet_trainer.optim import build_adamw, set_learning_rate
from bitnet_trainer.optim.shards import own_part
from bitnet_trainer.quantization.warmup import set_lambda
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.sharding import shard
from bitnet_trainer.step import StepInput, Stepper
from bitnet_trainer.stop import StopRequest
from bitnet_trainer.teacher import Teacher
from ports import free_port

pytestmark = pytest.mark.gpu

GIB = 2**30
ROOM = 8 * GIB
"""What the process may have: a larger device would only take longer to fill."""
VOCABULARY, LENGTH, SHARE = 32_000, 512, 1024
CONFIG = LlamaConfig(
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=8,
    num_attention_heads=12,
    vocab_size=VOCABULARY,
    max_position_embeddings=LENGTH,
)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    """One rank on a GPU, with a part of its memory."""
    place = {"RANK": 0, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "WORLD_SIZE": 1, "MASTER_PORT": free_port()}
    for name, value in {**place, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    joined = Ranks.join(gpus_per_worker=1)
    torch.cuda.set_per_process_memory_fraction(ROOM / torch.cuda.mem_get_info()[1])
    yield joined
    torch.cuda.set_per_process_memory_fraction(1.0)
    dist.destroy_process_group()


def steps(ranks: Ranks, teacher: Teacher | None, *, sharded: bool) -> tuple[Stepper, ObjectiveManager]:
    """A model of 80 M weights that is trained, and what its steps minimise."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).train()
    convert(model)
    student = LanguageModel(model).to(ranks.device)
    set_lambda(model, 0.5)
    if sharded:
        shard(student, ranks)
    optimizer = build_adamw(model, learning_rate=1e-3, weight_decay=0.1)
    set_learning_rate(optimizer, 1.0)
    stepper = Stepper(
        student, student.layers, optimizer, NonFiniteGuard(ranks.device), ranks, gradient_clipping=1.0
    )
    taught = {} if teacher is None else {"teacherLogits": TeacherLogitsObjective(2.0, 100, "Bucket", None)}
    return stepper, ObjectiveManager({"crossEntropy": CrossEntropyObjective(), **taught})


def rows(count: int) -> Rows:
    return Rows.of(torch.randint(2, VOCABULARY, (count, LENGTH)))


def fitting_of(
    stepper: Stepper,
    objectives: ObjectiveManager,
    weights: Mapping[str, float],
    teacher: Teacher | None,
    share: int,
    *,
    sharded: bool,
) -> Fitting:
    """For a phase whose ranks have so many sequences of a step."""
    shape = Shape(workers=1, processes_per_worker=1, micro_batch_size=share, accumulation=1)
    phase = PlannedPhase.model_construct(name="all", weights=dict(weights), shape=shape)
    return Fitting(stepper, phase, {}, objectives, teacher, rows, StopRequest(), sharded=sharded)


def held(stepper: Stepper) -> list[torch.Tensor]:
    """What the rank has of each weight, on the CPU."""
    return [own_part(weight.detach()).cpu() for weight in stepper.model.parameters()]


@pytest.mark.parametrize("how", ["whole", "with a teacher", "sharded"])
def test_what_is_found_trains_and_more_does_not_fit(ranks: Ranks, tmp_path: Path, how: str) -> None:
    teacher = None
    if how == "with a teacher":
        LlamaForCausalLM(CONFIG).save_pretrained(tmp_path / "teacher")
        teacher = Teacher(f"file://{tmp_path}/teacher", None, VOCABULARY, ranks.device)
        teacher.load()
    stepper, objectives = steps(ranks, teacher, sharded=how == "sharded")
    weights = {"crossEntropy": 1.0} | ({} if teacher is None else {"teacherLogits": 1.0})
    fitting = fitting_of(stepper, objectives, weights, teacher, SHARE, sharded=how == "sharded")
    before = held(stepper)
    assert fitting.search()
    assert all(map(torch.equal, held(stepper), before))
    memory = DeviceMemory(ranks.device)

    def peak(size: int) -> float:
        """Of two real steps of two micro batches, in bytes; infinite where they do not fit."""
        micro_batches = [rows(size), rows(size)]
        step = StepInput(micro_batches, objectives, objectives.count(micro_batches, weights), teacher)
        memory.release()
        try:
            for _ in range(2):
                stepper(step, weights)
        except torch.OutOfMemoryError:
            return float("inf")
        return memory.peak

    assert not fitting.roomy
    found, allowed = fitting.found, memory.available
    taken = peak(found)
    print(
        f"\n{torch.cuda.get_device_name()}, {how}: {found} x {LENGTH} tokens found; {taken / GIB:.2f} GiB "
        f"of tensors at most, {allowed / GIB:.2f} allowed, {torch.cuda.mem_get_info()[1] / GIB:.1f} there"
    )
    assert 1 < found < SHARE
    assert taken <= (1 - HEADROOM) * allowed
    # Sharded, sizes are refused by what the last one took, so the next one may have fitted.
    assert peak((4 if how == "sharded" else 2) * found) > (1 - HEADROOM) * allowed


def test_graphs_fit_where_it_is_roomy(ranks: Ranks) -> None:
    """Those below lambda 1 and those at it: half of what fits, so that twice as much would."""
    stepper, objectives = steps(ranks, None, sharded=False)
    student, weights = stepper.model, {"crossEntropy": 1.0}
    assert isinstance(student, LanguageModel)
    student.compile_layers()
    fitting = fitting_of(stepper, objectives, weights, None, 8, sharded=False)
    assert fitting.search()
    assert (fitting.found, fitting.roomy) == (8, True)
    memory = DeviceMemory(ranks.device)
    taken = []
    for replayed in (False, True):
        student.replay(replayed)
        memory.release()
        for lam in (0.5, 0.5, 0.5, 1.0, 1.0, 1.0):
            set_lambda(student.model, lam)
            step = [rows(8)]
            counts = objectives.count(step, weights)
            assert stepper(StepInput(step, objectives, counts, None), weights).values[0].isfinite()
        taken.append(torch.cuda.max_memory_reserved() / GIB)
    print(
        f"\n{taken[0]:.2f} GiB held by the process, graphs and free blocks included, {taken[1]:.2f} replayed"
    )
    assert taken[1] * GIB < memory.available
