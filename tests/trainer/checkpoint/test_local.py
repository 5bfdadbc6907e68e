"""Checkpoints on disk: whole or not at all, pruned, verified, and loaded as they were written."""

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bitnet_trainer.checkpoint import resume
from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.checkpoint.resume import check_position, newest_sound
from bitnet_trainer.checkpoint.state import Position, Training
from bitnet_trainer.checkpoint.store import MARKER
from bitnet_trainer.errors import BadInput, CheckpointError
from bitnet_trainer.optim import build_adamw
from tiny_training import POSITION, saved, tiny_training, train


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "run" / "checkpoints", keep=2)


def staged(store, step):
    store.stage(step)
    return store.staging(step)


def folder_of(committed):
    return Path(committed.address)


def write(store, step):
    folder = staged(store, step)
    (folder / "part").write_bytes(bytes([step]) * 100)
    (folder / "nested").mkdir()
    (folder / "nested" / "part").write_bytes(b"more")
    return store.commit(step, store.deliver(step))


def test_a_checkpoint_half_written_is_not_there(store):
    """Trap 10: at whatever moment a process dies before the marker, the older checkpoint is the newest."""
    first = write(store, 5)
    staged(store, 10).joinpath("part").write_bytes(b"half")
    assert newest_sound(store) == first
    store.staging(10).rename(store.root / "step-00000010")
    assert newest_sound(store) == first
    assert write(store, 10).step == newest_sound(store).step == 10


def test_what_a_killed_process_left_is_cleared(store):
    write(store, 5)
    store.stage(10)
    store.prepare()
    assert [path.name for path in store.root.iterdir()] == ["step-00000005"]


def test_what_lost_its_marker_is_cleared(store):
    """Killed between rename and marker, or while pruning."""
    write(store, 5)
    (folder_of(write(store, 10)) / MARKER).unlink()
    (store.root / "step-notes").mkdir()
    store.prepare()
    assert sorted(path.name for path in store.root.iterdir()) == ["step-00000005", "step-notes"]


def test_a_disk_that_the_run_itself_filled_is_cleared_before_it_is_probed(store, monkeypatch):
    (staged(store, 10) / "part").write_bytes(b"half")
    real = os.fsync

    def full(descriptor):
        if store.staging(10).exists():
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("os.fsync", full)
    store.prepare()
    assert not store.staging(10).exists()


def test_a_removal_cut_short_leaves_no_checkpoint(store, monkeypatch):
    write(store, 5)
    write(store, 10)
    real = shutil.rmtree

    def killed(path, **options):
        if "step-00000005" in str(path) and not path.name.startswith("."):
            raise KeyboardInterrupt
        real(path, **options)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        write(store, 15)
    assert (store.root / "step-00000005").exists()
    assert [committed.step for committed in store.committed()] == [15, 10]


def test_a_folder_that_cannot_be_written_is_known_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"checkpoint\.uri: .*/runs cannot be written .*Make it"):
        LocalStore(tmp_path / "file" / "runs", 1).prepare()


def test_a_position_on_a_full_disk_is_an_error_with_its_mend(store, group, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    training = tiny_training(0)
    monkeypatch.setattr("bitnet_trainer.checkpoint.state.Path.write_text", full)
    with pytest.raises(CheckpointError, match=r"checkpoint\.uri: .*No space left on device.*Free some space"):
        saved(store, training, group)
    assert newest_sound(store) is None


def test_a_full_disk_is_an_error_with_its_mend(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    write(store, 5)
    staged(store, 10).joinpath("part").write_bytes(b"x")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*free some space"):
        store.commit(10, store.deliver(10))
    assert newest_sound(store).step == 5


@pytest.fixture
def cuda(monkeypatch):
    """Makes a CUDA generator visible or not; gives what was restored to it."""
    restored = []

    def visible(size):
        fake = SimpleNamespace(
            is_available=lambda: size > 0,
            get_rng_state=lambda: torch.full((size,), 7, dtype=torch.uint8),
            set_rng_state=lambda state: restored.append(state.tolist()),
        )
        cpu = {"get_rng_state": torch.get_rng_state, "set_rng_state": torch.set_rng_state}
        # In this module alone: torch's own checkpoint writer would take a visible device for a real one.
        monkeypatch.setattr("bitnet_trainer.checkpoint.state.torch", SimpleNamespace(cuda=fake, **cpu))

    return visible, restored


@pytest.mark.parametrize(
    ("wrote", "reads", "expected"),
    [(0, 4, []), (4, 0, []), (4, 4, [[7] * 4]), (4, 6, [])],
    ids=["CPU to GPU", "GPU to CPU", "GPU to GPU", "another generator"],
)
def test_a_checkpoint_of_another_device_is_gone_on_from(store, group, cuda, wrote, reads, expected):
    visible, restored = cuda
    training = tiny_training(0)
    train(training, 1)
    visible(wrote)
    committed = saved(store, training, group)
    state = torch.get_rng_state()
    twin = tiny_training(1)
    visible(reads)
    resume.load(store, committed, POSITION, twin, group)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(twin.model[0].weight, training.model[0].weight)
    assert restored == expected


def test_a_checkpoint_whose_index_cannot_be_read_says_so(store, group):
    training = tiny_training(0)
    train(training, 1)
    committed = saved(store, training, group)
    (folder_of(committed) / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000010 cannot be loaded \(.metadata: "):
        resume.load(store, committed, POSITION, training, group)


def test_a_checkpoint_of_another_model_says_so(store, group):
    training = tiny_training(0)
    train(training, 1)
    committed = saved(store, training, group)
    other = nn.Sequential(nn.Embedding(9, 4))
    others = Training(other, build_adamw(other, learning_rate=1.0, weight_decay=0.0))
    with pytest.raises(CheckpointError, match=r"cannot be loaded .*written by another model"):
        resume.load(store, committed, POSITION, others, group)


LEFT_OUT = object()


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("origin", LEFT_OUT, "origin: Field required"),
        ("mixture", LEFT_OUT, "mixture: Field required"),
        ("origin", [20, "10"], r"origin\.1: Input should be a valid integer"),
        ("origin", [20], r"origin \(20,\) and mixture .* one number a source each"),
        ("mixture", [0.1, math.nan], r"mixture\.1: Input should be a finite number"),
        ("balance", {"maskedDiffusion": None}, r"balance\.maskedDiffusion: Input should be a valid number"),
        ("weights", [1], "weights: Unexpected keyword"),
    ],
)
def test_a_position_is_read_strictly(tmp_path, field, value, says):
    """One of an older version too: it does not say where its weights began."""
    POSITION.write(tmp_path)
    assert Position.parse((tmp_path / "position.json").read_bytes(), str(tmp_path)) == POSITION
    written = json.loads((tmp_path / "position.json").read_text())
    changed = {name: held for name, held in {**written, field: value}.items() if held is not LEFT_OUT}
    (tmp_path / "position.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match=rf"position\.json cannot be read \(.*{says}.*\)\. Remove"):
        Position.parse((tmp_path / "position.json").read_bytes(), str(tmp_path))


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("ledger_hash", "written under ledger aaaa.*cccc.*model, classification, teacher, optimizer"),
        ("data_fingerprint", "trained on text bbbb.*cccc"),
    ],
)
def test_another_runs_checkpoint_is_refused_by_both_names(store, field, says):
    committed = write(store, 10)
    check_position(POSITION, committed, POSITION.ledger_hash, POSITION.data_fingerprint)
    mine = replace(POSITION, **{field: "c" * 16})
    with pytest.raises(BadInput, match=rf"{says}.*Undo that change.*another name"):
        check_position(POSITION, committed, mine.ledger_hash, mine.data_fingerprint)
