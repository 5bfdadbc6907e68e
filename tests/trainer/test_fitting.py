"""The search for the largest micro batch that fits, with a memory that the test makes up."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from bitnet_crds.plan import PlannedPhase
from bitnet_crds.shapes import Shape
from bitnet_trainer import fitting
from bitnet_trainer.batch import Rows
from bitnet_trainer.fitting import HEADROOM, Fitting
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.objectives.manager import ObjectiveManager
from bitnet_trainer.stop import StopRequest

WEIGHTS = 40
"""Bytes of what is trained."""


class World:
    """A stepper, its ranks and its memory: passes of n sequences take `a n + b` bytes beyond what is held."""

    def __init__(self, room: float, a: float, b: float = 0.0, held: int = 0, elsewhere: float = math.inf):
        self.room, self.a, self.b, self.held = room, a, b, held
        self.elsewhere = elsewhere
        self.model = nn.Linear(WEIGHTS // 4, 1, bias=False)
        self.ranks = SimpleNamespace(device=torch.device("cpu"), total=self.total)
        # Bytes are whole: half of one more is only what rounding may take.
        self.available = (room + 0.5) / (1 - HEADROOM)
        self.devices: list[torch.device] = []
        self.peak, self.tried, self.micro_batches = 0.0, [], []
        self.stop = StopRequest()

    def taken(self, size: int) -> float:
        return self.held + WEIGHTS + self.a * size + self.b

    def rehearse_update(self) -> None:
        assert not self.tried, "moments are there before passes are tried"

    def rehearse(self, step, weights) -> None:
        size = len(step.micro_batches[0])
        self.tried.append(size)
        self.micro_batches.append(len(step.micro_batches))
        self.peak = self.taken(size)
        assert all(
            torch.equal(rows.input_ids, step.micro_batches[0].input_ids) for rows in step.micro_batches
        )
        assert step.counts == {"crossEntropy": size * len(step.micro_batches)}
        assert weights == {"crossEntropy": 1.0}
        if self.peak > self.available:
            raise torch.OutOfMemoryError(f"{size} sequences")

    def total(self, *counts: int) -> tuple[int, ...]:
        """Another rank has room for `elsewhere` sequences."""
        full = bool(self.tried) and self.tried[-1] > self.elsewhere and len(counts) == 1
        return (counts[0] + full, *counts[1:])

    def release(self) -> None:
        self.peak = 0.0

    def fitting(self, share: int, *, sharded: bool = False) -> Fitting:
        shape = Shape(workers=1, processes_per_worker=1, micro_batch_size=share, accumulation=1)
        phase = PlannedPhase.model_construct(weights={"crossEntropy": 1.0}, shape=shape)
        objectives = ObjectiveManager({"crossEntropy": CrossEntropyObjective()})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fitting, "DeviceMemory", lambda _device: self)
            return Fitting(self, phase, {}, objectives, None, made_up, self.stop, sharded=sharded)


def made_up(count: int) -> Rows:
    return Rows.of(torch.zeros((count, 2), dtype=torch.int64))


def divisors(share: int) -> list[int]:
    return [size for size in range(1, share + 1) if share % size == 0]


SHARES, ROOMS = st.integers(1, 400), st.integers(0, 450)


@given(SHARES, ROOMS, st.integers(0, 450))
def test_it_is_the_largest_divisor_of_a_ranks_share_that_fits_on_all_ranks(share, here, elsewhere):
    world = World(WEIGHTS + here, a=1, elsewhere=elsewhere)
    search = world.fitting(share)
    assert search.search()
    assert search.found == max(size for size in divisors(share) if size <= max(1, min(here, elsewhere)))
    assert world.tried == [size for size in divisors(share) if size <= world.tried[-1]]
    assert sum(size > min(here, elsewhere) for size in world.tried) <= 1, (
        "the first that does not fit ends it"
    )


@given(SHARES, ROOMS, st.integers(0, 100), st.integers(0, 450))
def test_graphs_have_room_where_twice_as_much_as_was_taken_fits_on_all_ranks(share, here, b, elsewhere):
    world = World(WEIGHTS + here, a=1, b=b, elsewhere=elsewhere)
    search = world.fitting(share)
    assert search.search()
    fitted = world.taken(search.found) <= world.room and search.found <= elsewhere
    room = WEIGHTS + 2 * (search.found + b) <= world.room and world.tried[-1] <= elsewhere
    assert search.roomy == (fitted and room)


def test_what_is_known_is_tried_alone():
    world = World(WEIGHTS + 12, a=1)
    search = world.fitting(12)
    assert search.search(only=6)
    assert (world.tried, search.found, search.roomy) == ([6], 6, True)
    world = World(WEIGHTS + 12, a=1)
    search = world.fitting(60)
    assert search.search(only=30)
    assert (world.tried, search.found, search.roomy) == ([30], 1, False)


def test_a_step_of_several_micro_batches_is_tried_with_two_of_them():
    """The second one's passes are beside the first one's gradients."""
    world = World(WEIGHTS + 12, a=1)
    assert world.fitting(12).search()
    assert list(zip(world.tried, world.micro_batches, strict=True)) == [
        *((size, 2) for size in (1, 2, 3, 4, 6)),
        (12, 1),
    ]


def test_what_fits_without_leaving_room_does_not_fit():
    world = World(WEIGHTS + 100, a=10)
    assert world.taken(16) > world.room
    world.available = world.taken(16)
    search = world.fitting(16)
    assert search.search()
    assert (world.tried, search.found) == ([1, 2, 4, 8, 16], 8)


@given(SHARES, st.integers(1, 50), st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 20_000))
def test_sharded_ranks_try_only_what_is_foreseen_to_fit(share, a, b, held, room):
    world = World(room, a, b, held)
    assume(world.taken(1) <= world.available)
    search = world.fitting(share, sharded=True)
    assert search.search(), "nothing ran out of memory, or it were raised"
    assert all(world.taken(size) <= room for size in world.tried[1:])
    fits = [size for size in divisors(share) if size == 1 or world.taken(size) <= room]
    assert search.found in fits
    if b == 0:
        assert search.found == fits[-1]


def test_sharded_ranks_do_not_go_on_when_one_ran_out_of_memory():
    """The others wait for it. What fitted until then is known."""
    world = World(10_000, a=1)
    search = world.fitting(8, sharded=True)
    world.taken = lambda size: WEIGHTS + size if size < 4 else 20_000
    with pytest.raises(torch.OutOfMemoryError):
        search.search()
    assert search.found == 2


def test_a_request_to_stop_ends_the_search_between_two_sizes():
    world = World(10_000, a=1)
    search = world.fitting(16)
    rehearse = world.rehearse

    def stopping(step, weights):
        rehearse(step, weights)
        world.stop.requested = len(world.tried) == 2

    world.rehearse = stopping
    assert not search.search()
    assert world.tried == [1, 2]


def test_errors_that_are_not_memory_are_raised():
    world = World(10_000, a=1)

    def failing(_step, _weights):
        raise RuntimeError("shapes differ")

    world.rehearse = failing
    with pytest.raises(RuntimeError, match="shapes differ"):
        world.fitting(4).search()


def test_random_states_are_as_before():
    world = World(10_000, a=1)
    rehearse = world.rehearse

    def drawing(step, weights):
        torch.rand(1)
        rehearse(step, weights)

    world.rehearse = drawing
    before = torch.get_rng_state()
    assert world.fitting(4).search()
    assert torch.equal(torch.get_rng_state(), before)


def test_all_objectives_that_run_together_in_a_transition_are_tried_together():
    shape = Shape(workers=1, processes_per_worker=1, micro_batch_size=2, accumulation=1)
    phase = PlannedPhase.model_construct(weights={"b": 1.0, "a": 0.0}, shape=shape)
    search = Fitting(World(1, 1), phase, {"a": 0.9, "b": 0.1}, None, None, made_up, None, sharded=False)
    assert search._weights == {"a": 0.9, "b": 1.0}
