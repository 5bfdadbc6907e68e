"""What befalls a run, on this machine: decided as in a cluster, and carried out by the trainer."""

import json
from collections.abc import Callable
from typing import Any

import pytest

MakeBitnetctl = Callable[..., Any]


def lines_of(bitnetctl: Any) -> list[dict[str, Any]]:
    metrics = bitnetctl.run_folder / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def test_losses_that_are_not_finite_are_rolled_back_and_their_batches_passed_over(
    make_bitnetctl: MakeBitnetctl,
) -> None:
    bitnetctl = make_bitnetctl(steps=16)
    bitnetctl.faults = {"NOT_FINITE": "6,7"}
    spec = bitnetctl.document["spec"]
    spec["checkpoint"]["everySteps"] = 5
    spec["health"] = {"nonFinite": {"skipSteps": 1, "learningRateFactor": 0.5}}
    spec["schedule"] = {"decayFraction": 0}
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 0, output
    status = bitnetctl.status()
    first, second = status["segments"][:2]
    assert (first["outcome"], first["exitReason"]) == ("Failed", "NonFinite")
    assert (second["reason"], second["firstStep"]) == ("Rollback", 5)
    assert status["adjustments"]["rollbacks"] == [
        {"checkpointStep": 5, "firstBatch": 6, "batches": 2, "learningRateFactor": 0.5}
    ]
    lines = lines_of(bitnetctl)
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert all(line["loss"] is not None for line in lines)
    assert lines[5]["learningRate"] == pytest.approx(lines[4]["learningRate"] / 2)


def test_after_its_last_roll_back_a_run_has_failed_and_says_what_to_do(make_bitnetctl: MakeBitnetctl) -> None:
    bitnetctl = make_bitnetctl(steps=16)
    bitnetctl.faults = {"NOT_FINITE": "6,7"}
    bitnetctl.document["spec"]["health"] = {"nonFinite": {"skipSteps": 1, "rollbacks": 0}}
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 1, output
    (failed,) = [each for each in bitnetctl.status()["conditions"] if each["type"] == "Failed"]
    assert failed["reason"] == "NonFinite"


def test_a_micro_batch_that_does_not_fit_is_halved_until_it_does(make_bitnetctl: MakeBitnetctl) -> None:
    bitnetctl = make_bitnetctl(steps=12)
    bitnetctl.faults = {"FITTING": "1"}
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 0, output
    status = bitnetctl.status()
    (times,) = status["adjustments"]["halvings"].values()
    assert times == 2
    last = status["segments"][-1]["shape"]
    assert (last["microBatchSize"], last["accumulation"]) == (1, 8)
    assert [segment["reason"] for segment in status["segments"]].count("OutOfMemory") == 2
    assert status["attempts"] == 0


def test_auto_finds_the_micro_batch_of_each_phase_and_nothing_fails(make_bitnetctl: MakeBitnetctl) -> None:
    bitnetctl = make_bitnetctl(steps=12)
    bitnetctl.faults = {"FITTING": "2"}
    bitnetctl.document["spec"]["workers"] |= {"gpusPerWorker": 1, "microBatchSize": "Auto"}
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 0, output
    status = bitnetctl.status()
    assert status["adjustments"]["microBatches"] == {"warmup": 8, "main": 8, "distill": 2}
    assert "halvings" not in status["adjustments"] or not status["adjustments"]["halvings"]
    assert status["attempts"] == 0
    assert len({segment["job"] for segment in status["segments"]}) == 1
    assert {segment["outcome"] for segment in status["segments"]} == {"Completed"}
    last = status["segments"][-1]["shape"]
    assert (last["microBatchSize"], last["accumulation"]) == (2, 4)
    assert [line["microBatchSize"] for line in lines_of(bitnetctl)] == [8] * 9 + [2] * 3
