"""Checkpoints written while training goes on: what they hold, when they count, who learns of a failure."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from bitnet_trainer.checkpoint import resume
from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.checkpoint.resume import newest_sound, read_position
from bitnet_trainer.checkpoint.saver import Saver
from bitnet_trainer.checkpoint.state import Copier
from bitnet_trainer.errors import CheckpointError
from tiny_training import POSITION, differing, everything, tiny_training, train


class HeldStore(LocalStore):
    """Commits when it is let go."""

    def __init__(self, root: Path, keep: int = 3) -> None:
        super().__init__(root, keep)
        self.reached, self.go = threading.Event(), threading.Event()

    def stage(self, step):
        self.reached.set()
        assert self.go.wait(20)
        super().stage(step)


def test_training_goes_on_while_a_checkpoint_of_before_is_written(tmp_path, group):
    store, training = HeldStore(tmp_path), tiny_training(0)
    train(training, 3)
    saver, then = Saver(store, training, group), everything(training)
    saver.begin(POSITION)
    random_then = torch.get_rng_state()
    assert store.reached.wait(20)
    train(training, 4)
    now = everything(training)
    assert "0.weight" in differing(then, now)
    assert saver.in_flight
    assert not saver.settled
    assert newest_sound(store) is None
    store.go.set()
    committed = saver.outcome()
    assert not saver.in_flight
    assert committed == newest_sound(store)
    assert differing(now, everything(training)) == []

    twin = tiny_training(1)
    resume.load(store, committed, read_position(store, committed), twin, group)
    assert differing(then, everything(twin)) == []
    assert torch.equal(torch.get_rng_state(), random_then)
    assert saver.close() is None


def test_each_checkpoint_holds_its_own_step(tmp_path, group):
    store, training = LocalStore(tmp_path, 3), tiny_training(0)
    saver, states = Saver(store, training, group), {}
    for step in (1, 2, 3):
        train(training, 1)
        states[step] = everything(training)
        saver.begin(replace(POSITION, step=step))
        assert saver.outcome().step == step
    for committed in store.committed():
        twin = tiny_training(1)
        resume.load(store, committed, read_position(store, committed), twin, group)
        assert differing(states[committed.step], everything(twin)) == []


def test_the_copys_memory_is_used_again():
    training = tiny_training(0)
    train(training, 1)
    copier, copies = Copier(training), []
    for _ in range(3):
        copied = copier.copy(training.tensors({}))
        copies.append(copied["model"]["0.weight"])
        assert torch.equal(copies[-1], training.model[0].weight)
        train(training, 1)
    assert len({copy.data_ptr() for copy in copies}) == 1
    assert copies[0].data_ptr() != training.model[0].weight.data_ptr()
    copier.close()


def test_one_that_fails_says_so_when_it_is_taken_up_and_the_next_one_is_written(tmp_path, group):
    (tmp_path / "runs").write_text("a file where the folder should be")
    store, training = LocalStore(tmp_path / "runs", 3), tiny_training(0)
    train(training, 1)
    saver = Saver(store, training, group)
    saver.begin(POSITION)
    with pytest.raises(CheckpointError, match=r"checkpoint\.uri: .*/runs cannot be written"):
        saver.outcome()
    (tmp_path / "runs").unlink()
    saver.begin(POSITION)
    assert saver.close() == newest_sound(store)


def test_what_was_in_flight_when_an_error_ended_the_run_is_logged(tmp_path, group, caplog):
    (tmp_path / "runs").write_text("")
    training = tiny_training(0)
    train(training, 1)
    saver = Saver(LocalStore(tmp_path / "runs", 3), training, group)
    saver.begin(POSITION)
    assert saver.close() is None
    assert "was being written was not committed" in caplog.text


def test_the_model_to_run_is_that_of_the_step(tmp_path, group):
    store, training, written = HeldStore(tmp_path), tiny_training(0), {}
    train(training, 1)
    then = everything(training)
    saver = Saver(store, training, group, inference=lambda folder, weights: written.update({folder: weights}))
    saver.begin(POSITION)
    train(training, 1)
    store.go.set()
    saver.outcome()
    ((folder, weights),) = written.items()
    assert folder.name == "inference"
    assert torch.equal(weights["0.weight"], then["0.weight"])


CALLS = ("fsync", "rename", "unlink", "rmdir", "mkdir")


def killed_at(root: Path, call: int) -> bool:
    """Writes the checkpoints of steps 5, 10 and 15, keeping one, in a process that is killed right before
    its `call`-th change of the disk. Whether it was."""
    child = os.fork()
    if child == 0:
        try:
            counted = iter(range(call))

            def deadly(real):
                def count(*arguments, **options):
                    if next(counted, None) is None:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*arguments, **options)

                return count

            for name in CALLS:
                setattr(os, name, deadly(getattr(os, name)))
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            training = tiny_training(0)
            saver = Saver(LocalStore(root, keep=1), training, dist.group.WORLD)
            for step in (5, 10, 15):
                train(training, 1)
                saver.begin(replace(POSITION, step=step))
                train(training, 1)
                saver.outcome()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
    return status != 0


def test_killed_at_any_moment_it_leaves_whole_checkpoints_or_such_that_nobody_reads(tmp_path):
    """Trap 10. At each moment between two changes of the disk."""
    last, call = -1, 0
    while True:
        root = tmp_path / str(call)
        killed = killed_at(root, call)
        store = LocalStore(root, keep=1)
        found = newest_sound(store)
        for each in store.committed():
            assert store.verify(each) is None
        # What was committed once is not lost by what came after it.
        assert (found.step if found else 0) >= last
        last = found.step if found else 0
        store.prepare()
        assert not [path for path in root.rglob("*") if path.name.startswith(".step-")] if found else True
        if not killed:
            break
        call += 1
    assert last == 15
    assert call > 20


TWO_RANKS = """
import json, os, sys
from pathlib import Path
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from bitnet_trainer.checkpoint import resume
from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.checkpoint.resume import read_position
from bitnet_trainer.checkpoint.saver import Saver
from bitnet_trainer.checkpoint.state import Copier, Training
from bitnet_trainer.errors import CheckpointError
from tiny_training import POSITION
from torch import nn

root, rank = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2)

class FaultyStore(LocalStore):
    fault = None
    def deliver(self, step):
        if self.fault is not None and self._rank == 1:
            raise self.fault
        return super().deliver(step)

def sharded(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    return Training(model, torch.optim.AdamW(model.parameters()))

def step(training):
    training.model(torch.randn(4, 5)).square().sum().backward()
    training.optimizer.step()
    training.optimizer.zero_grad()

def whole(training):
    return {name: weight.full_tensor().tolist() for name, weight in training.model.state_dict().items()}

store, training, seen, inference = FaultyStore(root / "runs", 3, rank), sharded(0), {}, {}
group = dist.new_group(backend="gloo")
saver = Saver(store, training, group, lambda folder, weights: inference.update(weights))
step(training)
for name, fault in {"foreseen": CheckpointError("the disk is full"),
                    "passing": CheckpointError("storage is away", transient=True),
                    "bug": ZeroDivisionError("a bug"), "none": None}.items():
    store.fault = fault
    saver.begin(POSITION)
    then = whole(training)
    step(training)
    try:
        seen[name] = str(saver.outcome().step)
    # Anything at all: which error it is, is what is seen.
    except Exception as error:
        seen[name] = f"{type(error).__name__}: {error}"
        if getattr(error, "transient", False):
            seen[name] += ", for now"
seen["trained"] = whole(training) != then
twin = sharded(1)
committed = store.committed()[0]
resume.load(store, committed, read_position(store, committed), twin, dist.group.WORLD)
seen["loaded"] = whole(twin) == then
inference = {name: weight.tolist() for name, weight in inference.items()}
seen["inference"] = inference == (then if rank == 0 else {})
seen["files"] = sorted(path.name for path in Path(committed.address).iterdir())
(root / f"seen-{rank}").write_text(json.dumps(seen))
saver.close()
os._exit(0)
"""


def test_ranks_learn_of_each_outcome_alike_and_sharded_state_is_copied_too(tmp_path):
    """Two ranks with FSDP2: one of them fails to hand over its files, then has a bug, then neither."""
    script = tmp_path / "ranks.py"
    script.write_text(TWO_RANKS)
    path = os.pathsep.join([str(Path(__file__).parents[2] / "support"), *sys.path])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), str(rank)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    assert [rank.wait(60) for rank in ranks] == [0, 0]
    first, second = (json.loads((tmp_path / f"seen-{rank}").read_text()) for rank in (0, 1))
    assert first["foreseen"] == second["foreseen"] == "CheckpointError: the disk is full"
    assert first["passing"] == second["passing"] == "CheckpointError: storage is away, for now"
    assert second["bug"] == "ZeroDivisionError: a bug"
    assert first["bug"].startswith("RuntimeError: rank 1 failed while it wrote a checkpoint")
    assert "ZeroDivisionError: a bug" in first["bug"]
    assert first["none"] == second["none"] == "10"
    for seen in (first, second):
        assert seen["trained"]
        assert seen["loaded"]
        assert seen["inference"]
        assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "COMMITTED", "position.json"} <= set(
            seen["files"]
        )
