"""`bitnetctl run`: to the end, stopped and gone on with, killed and found again."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

MakeBitnetctl = Callable[..., Any]


def said_of(status: dict[str, Any]) -> list[tuple[str, str]]:
    return [(segment["reason"], segment["outcome"]) for segment in status["segments"]]


def test_a_run_is_trained_to_its_end_and_says_what_came_out(make_bitnetctl: MakeBitnetctl) -> None:
    bitnetctl = make_bitnetctl()
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 0, output
    status = bitnetctl.status()
    assert (status["phase"], status["step"], status["totalSteps"]) == ("Succeeded", 12, 12)
    assert said_of(status) == [("Start", "Completed"), ("TeacherPhase", "Completed")]
    shapes = [(s["shape"]["microBatchSize"], s["shape"]["accumulation"]) for s in status["segments"]]
    assert shapes == [(8, 1), (4, 2)]
    for name in ("export/huggingface/config.json", "loss.png", "run.json", "metrics.jsonl"):
        assert (bitnetctl.run_folder / name).is_file()
    assert "succeeded" in output
    assert status["evaluation"]["perplexityAfter"] in output.replace(",", "")

    # The same command again has nothing left to do, and says the same.
    before = (bitnetctl.run_folder / "metrics.jsonl").read_bytes()
    code, again = bitnetctl("run", str(bitnetctl.file))
    assert code == 0
    assert "succeeded" in again
    assert f"remove {bitnetctl.run_folder}" in " ".join(again.split())
    assert "had ended before" not in output
    assert (bitnetctl.run_folder / "metrics.jsonl").read_bytes() == before


def test_a_run_without_a_teacher_is_trained_to_its_end(make_bitnetctl: MakeBitnetctl) -> None:
    bitnetctl = make_bitnetctl(steps=4)
    spec = bitnetctl.document["spec"]
    del spec["teacher"]
    spec["phases"] = [{"name": "all", "until": "100%", "objectives": {"crossEntropy": {"weight": 1}}}]
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 0, output
    assert bitnetctl.status()["step"] == 4


def test_a_changed_run_is_never_given_the_old_ones_result(make_bitnetctl: MakeBitnetctl) -> None:
    bitnetctl = make_bitnetctl(steps=4)
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 0, output
    spec = bitnetctl.document["spec"]

    # What decides nothing of the result may change.
    spec |= {"retries": 1, "checkpoint": {**spec["checkpoint"], "everySteps": 2, "keep": 1}}
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 0, output

    spec["budget"]["tokens"] *= 2
    spec["seed"] = 5
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 2, output
    mend = f"changed since this run began. Give the run another name, or remove {bitnetctl.run_folder}."
    assert output.splitlines() == [f"spec.budget: {mend}", f"spec.seed: {mend}"]


def test_ctrl_c_checkpoints_and_a_second_run_goes_on_from_there(make_bitnetctl: MakeBitnetctl) -> None:
    bitnetctl = make_bitnetctl(steps=150)
    process = bitnetctl.start("run", str(bitnetctl.file))
    bitnetctl.wait_for_step(7, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 130, output
    status = bitnetctl.status()
    assert status["phase"] == "Suspended"
    stopped_at = status["checkpointStep"]
    assert stopped_at >= 7
    assert said_of(status) == [("Start", "Suspended")]

    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 0, output
    status = bitnetctl.status()
    assert said_of(status)[:2] == [("Start", "Suspended"), ("Resumed", "Completed")]
    assert status["segments"][1]["firstStep"] == stopped_at
    assert status["attempts"] == 0


def test_a_run_that_is_to_wait_begins_nothing_until_it_may(make_bitnetctl: MakeBitnetctl) -> None:
    bitnetctl = make_bitnetctl(steps=4)
    bitnetctl.document["spec"]["suspend"] = True
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 130, output
    assert "With `suspend: false` it goes on from step 0." in output
    assert bitnetctl.status()["phase"] == "Suspended"
    assert not (bitnetctl.run_folder / "jobs").exists()

    bitnetctl.document["spec"]["suspend"] = False
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 0, output
    assert said_of(bitnetctl.status())[0] == ("Start", "Completed")


def test_a_trainer_that_outlived_bitnetctl_is_found_again(make_bitnetctl: MakeBitnetctl) -> None:
    bitnetctl = make_bitnetctl(steps=150)
    process = bitnetctl.start("run", str(bitnetctl.file))
    bitnetctl.wait_for_step(3, process)
    process.kill()
    process.communicate()
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 0, output
    assert said_of(bitnetctl.status()) == [("Start", "Completed"), ("TeacherPhase", "Completed")]
    assert [path.name for path in (bitnetctl.run_folder / "jobs").iterdir()] == ["tiny-0"]


def test_a_killed_trainer_is_retried_from_its_checkpoint(make_bitnetctl: MakeBitnetctl) -> None:
    bitnetctl = make_bitnetctl(steps=150)
    process = bitnetctl.start("run", str(bitnetctl.file))
    bitnetctl.wait_for_step(12, process)
    launcher = int((bitnetctl.run_folder / "jobs/tiny-0/alive").read_text().split()[0])
    os.kill(_rank_of(launcher), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    status = bitnetctl.status()
    assert said_of(status)[:2] == [("Start", "Failed"), ("Retry", "Completed")]
    # Checkpoints of the second try begin the count anew.
    assert (status["segments"][0]["exitCode"], status["attempts"]) == (137, 0)
    # Of a checkpoint; the one of step 10 may still have been on its way.
    assert status["segments"][1]["firstStep"] in range(5, 150, 5)


def test_two_at_once_are_refused(make_bitnetctl: MakeBitnetctl) -> None:
    bitnetctl = make_bitnetctl(steps=400)
    first = bitnetctl.start("run", str(bitnetctl.file))
    bitnetctl.wait_for_step(1, first)
    code, output = bitnetctl("run", str(bitnetctl.file))
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=180)
    assert code == 2
    assert "another bitnetctl" in output


def _rank_of(launcher: int) -> int:
    """The one training process below a launcher."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if b"bitnet_trainer.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise AssertionError(f"launcher {launcher} has no rank")
