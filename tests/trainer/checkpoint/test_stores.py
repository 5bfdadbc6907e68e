"""Checkpoints wherever they are kept: whole or not at all, pruned, verified, loaded as they were written."""

import json
from dataclasses import replace

import pytest
import torch

from bitnet_crds import Rollback
from bitnet_trainer.checkpoint import resume
from bitnet_trainer.checkpoint.resume import newest_sound, read_position
from bitnet_trainer.checkpoint.store import MARKER
from bitnet_trainer.errors import CheckpointError
from places import fill, write
from tiny_training import POSITION, differing, everything, saved, tiny_training, train


def steps(store):
    return [committed.step for committed in store.committed()]


def folders(place):
    return {name.split("/")[0] for name in place.names()}


def test_what_is_committed_is_found_and_sound(place):
    store = place.store()
    committed = write(store, 5)
    assert committed.name == "step-00000005"
    assert committed.address == f"{store.address}/step-00000005"
    assert newest_sound(store) == committed
    assert store.verify(committed) is None
    assert place.names() == {f"step-00000005/{name}" for name in ("part", "nested/part", MARKER)}
    marker = json.loads(store.read(committed, MARKER))
    assert marker["files"].keys() == {"part", "nested/part"}


def test_what_is_fetched_is_what_was_written(place):
    store = place.store()
    folder = store.folder(write(store, 5))
    assert (folder / "part").read_bytes() == bytes([5]) * 100
    assert (folder / "nested/part").read_bytes() == b"more"


def test_a_checkpoint_half_written_is_not_there(place):
    """Trap 10: at whatever moment a process dies before the marker, the older checkpoint is the newest."""
    store = place.store()
    first = write(store, 5)
    store.stage(10)
    fill(store, 10)
    assert newest_sound(store) == first
    delivered = store.deliver(10)
    assert newest_sound(store) == first
    assert store.commit(10, delivered).step == newest_sound(store).step == 10


def test_what_a_killed_process_left_is_cleared(place):
    """Killed while it wrote, or while it pruned."""
    store = place.store()
    write(store, 5)
    write(store, 10)
    place.remove(f"step-00000010/{MARKER}")
    store.stage(15)
    fill(store, 15)
    store.deliver(15)
    place.put("step-notes/of someone", b"else")
    place.store().prepare()
    assert folders(place) == {"step-00000005", "step-notes"}


def test_the_newest_are_kept(place):
    store = place.store(keep=2)
    for step in (5, 10, 15, 100):
        write(store, step)
    assert steps(store) == [100, 15]
    assert folders(place) == {"step-00000015", "step-00000100"}


DAMAGES = {
    "missing": lambda place, name: place.remove(name),
    "bytes and should have": lambda place, name: place.put(name, b"short"),
    "other content": lambda place, name: place.put(name, b"x" * 100),
}


@pytest.mark.parametrize("says", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(place, says, caplog):
    store = place.store()
    first, second = write(store, 5), write(store, 10)
    DAMAGES[says](place, "step-00000010/part")
    assert says in store.verify(second)
    assert newest_sound(store) == first
    assert "step-00000010 is damaged and is passed over" in caplog.text


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_checkpoint_never_pushes_a_sound_one_out(place, keep):
    store = place.store(keep=3)
    for step in (10, 18, 20):
        write(store, step)
    for step in (18, 20):
        place.remove(f"step-{step:08d}/part")
    store = place.store(keep)
    assert newest_sound(store).step == 10
    store.prepare()
    assert len(folders(place)) == 3, "damaged files stay while one may want to restore them"
    write(store, 15)
    assert steps(store) == [15, 10][:keep]
    assert newest_sound(store).step == 15
    assert len(folders(place)) == keep
    assert write(store, 20).step == newest_sound(store).step == 20


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(place):
    """Trap 10: a failed run must not begin afresh over its old one."""
    store = place.store()
    write(store, 5)
    place.remove("step-00000005/part")
    with pytest.raises(CheckpointError, match=r"no checkpoint .* is sound \(step-00000005: part is"):
        newest_sound(store)
    store.prepare()
    assert steps(store) == [5]


def knowing(store, step, rollbacks):
    """Commits a checkpoint that was written after so many roll-backs."""
    store.stage(step)
    replace(POSITION, step=step, rollbacks=rollbacks).write(store.staging(step))
    return store.commit(step, store.deliver(step))


def went_back(*checkpoint_steps):
    return [
        Rollback(checkpoint_step=step, first_batch=step, batches=1, learning_rate_factor=0.5)
        for step in checkpoint_steps
    ]


@pytest.mark.parametrize(
    ("written", "rollbacks", "newest"),
    [
        ([(5, 0), (10, 0), (15, 0)], (10,), 10),
        ([(5, 0), (10, 0), (12, 1)], (10,), 12),
        ([(5, 0), (7, 1), (10, 0), (15, 0)], (5,), 7),
        ([(5, 0), (8, 1), (10, 0)], (10, 5), 5),
        ([(5, 0), (7, 2), (8, 1), (10, 0)], (10, 5), 7),
        ([(5, 0), (8, 1), (10, 1)], (3, 8), 8),
        ([(5, 0)], (0,), None),
        ([], (0, 5), None),
    ],
)
def test_what_a_rollback_left_behind_is_not_gone_on_from(place, written, rollbacks, newest):
    """`written`: steps, and how many roll-backs each checkpoint was written after."""
    store = place.store(keep=9)
    for step, known in written:
        knowing(store, step, known)
    for _ in range(2):
        found = newest_sound(place.store(keep=9), went_back(*rollbacks))
        assert (found and found.step) == newest
        assert max(steps(store), default=None) == newest


def test_a_step_that_a_rollback_left_behind_is_written_again(place):
    """By this process or, where that one was killed, by the next."""
    store = place.store(keep=9)
    for step in (5, 10, 15):
        knowing(store, step, 0)
    store.prepare()
    assert newest_sound(store, went_back(5)).step == 5
    assert knowing(store, 10, 1) == newest_sound(store, went_back(5))
    knowing(store, 12, 1)
    later = place.store(keep=9)
    later.prepare()
    assert newest_sound(later, went_back(5, 10)).step == 10
    again = place.store(keep=9)
    again.prepare()
    assert knowing(again, 12, 2) == newest_sound(again, went_back(5, 10))
    assert again.verify(again.committed()[0]) is None


def test_a_run_that_lost_what_it_went_back_to_does_not_start_over(place):
    store = place.store()
    knowing(store, 10, 0)
    with pytest.raises(CheckpointError, match="went back to its checkpoint of step 5"):
        newest_sound(store, went_back(5))
    assert steps(store) == [10]


def test_without_any_checkpoint_a_run_begins_and_nothing_is_left_behind(place):
    store = place.store()
    assert newest_sound(store) is None
    store.prepare()
    assert place.names() == set()


def test_a_marker_that_is_none_is_damage(place):
    store = place.store()
    first = write(store, 5)
    write(store, 10)
    place.put(f"step-00000010/{MARKER}", b"{")
    assert newest_sound(store) == first


def test_training_goes_on_from_a_checkpoint_bit_for_bit(place, group):
    store, training = place.store(), tiny_training(0)
    train(training, 4)
    committed = saved(store, training, group)
    train(training, 3)

    twin = tiny_training(1)
    position = read_position(store, committed)
    assert position == POSITION
    resume.load(store, committed, position, twin, group)
    train(twin, 3)
    assert differing(everything(training), everything(twin)) == []
    assert twin.model[2].weight is twin.model[0].weight
    assert torch.equal(twin.model[2].weight, training.model[0].weight)


def test_a_position_that_cannot_be_read_says_so(place):
    store = place.store()
    committed = write(store, 5)
    with pytest.raises(CheckpointError, match=r"checkpoint\.uri: .*checkpoints"):
        read_position(store, committed)
