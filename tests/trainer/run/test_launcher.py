"""The launcher: whose exit code comes out, what it reports, and how a run is stopped."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from bitnet_crds.protocol import ExitCode, Progress
from bitnet_trainer.__main__ import OUTLIVE_SECONDS, explain_failure, find_place
from bitnet_trainer.errors import BadInput
from bitnet_trainer.told import TOLD
from ports import free_port


def stand_in(run, script):
    """A file with `script`, to run in place of the trainer, so that a rank can end in any way."""
    worker = run.root / "worker.py"
    worker.write_text(f"import os, signal, time\nrank = int(os.environ['RANK'])\n{script}\n")
    return worker


def launch_stand_in(run, script):
    """Launches it as every rank."""
    return run.launch(stand_in(run, script))


def launch_nodes(run, worker=None, count=2, port=0):
    """Launchers that find each other as PyTorchJob's pods do; each leaves its last word in `node-<rank>`."""
    rendezvous = free_port()
    return [
        run.launch_node(
            rank,
            rendezvous,
            count,
            worker,
            PET_NPROC_PER_NODE="auto",
            WORLD_SIZE=str(count),
            RANK=str(rank),
            BITNET_PORT=str(port),
        )
        for rank in range(count)
    ]


def test_a_ranks_own_exit_code_comes_out(make_run, ended):
    """Trap 16: torchrun says 1 whatever its child said."""
    run = make_run(workers=2)
    assert ended(launch_stand_in(run, "if rank == 1: os._exit(42)\ntime.sleep(60)")) == 42
    word = run.last_word()
    assert (word.exit_code, word.reason, word.rank) == (42, "Exit42", 1)


def test_a_killed_rank_is_reported_by_its_signal(make_run, ended):
    run = make_run(workers=2)
    process = launch_stand_in(run, "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)")
    assert ended(process) == 137
    word = run.last_word()
    assert word.reason == "Killed"
    assert "rank 1 was killed by signal 9 (SIGKILL)" in word.message


def failure(rank, code, second=0):
    found = ProcessFailure(local_rank=rank, pid=100 + rank, exitcode=code, error_file="none")
    found.timestamp = second
    return found


@pytest.mark.parametrize(
    ("codes", "cause", "code"),
    [
        pytest.param({0: (200, 0), 1: (7, 0)}, 1, 7, id="the rank that lost its peer is no cause"),
        pytest.param({0: (200, 0), 1: (-9, 1)}, 1, 137, id="even where the cause was seen later"),
        pytest.param({0: (143, 0), 1: (4, 0)}, 1, 4, id="nor is one that the agent asked to stop"),
        pytest.param({0: (-9, 30), 1: (4, 0)}, 1, 4, id="nor one that the agent had to kill"),
        pytest.param({0: (143, 0), 1: (143, 0)}, 0, 143, id="all were asked to stop"),
        pytest.param({0: (-11, 0)}, 0, 139, id="a crash in native code"),
    ],
)
def test_the_cause_comes_out(codes, cause, code):
    """Trap 16, where several ranks end at once."""
    word = explain_failure({rank: failure(rank, *seen) for rank, seen in codes.items()}, {})
    assert (word.rank, word.exit_code) == (cause, code)


def test_success_is_zero_and_the_first_ranks_report(make_run, ended):
    run = make_run(steps=12, workers=2)
    process = run.launch()
    assert ended(process) == 0
    word = run.last_word()
    assert (word.reason, word.rank, word.step) == ("Succeeded", 0, 12)
    assert word.checkpoint.uri == f"file://{run.folder}/checkpoints/step-00000012"
    assert Path(word.artifacts["LossPlot"]).is_file()
    assert word.evaluation is not None
    assert [record.world_size for record in run.metrics()] == [2] * 12


TEACHERLESS = """
import os, sys
from pathlib import Path
from bitnet_trainer import hub, outcome, teacher, worker
from bitnet_trainer.errors import ModelUnavailable

hub.TIMEOUT, hub.PAUSES = 0.2, (0.1,)
if os.environ.get("BROKEN_ON") == os.environ["RANK"]:
    def broken(*_):
        raise ModelUnavailable("this node's disk is broken")
    teacher.load_weights = broken

def leave_report(report):
    Path(sys.argv[0]).with_name(f"report-{report.rank}").write_text(report.to_message())
    outcome.leave_report(report)

worker.leave_report = leave_report
worker.main()
"""


@pytest.mark.parametrize(
    ("address", "more", "says"),
    [
        (None, {"BROKEN_ON": "0"}, "1 of 2 ranks .* rank 0 says: .*disk is broken"),
        (None, {"BROKEN_ON": "1"}, "1 of 2 ranks .* rank 1 says: .*disk is broken"),
        ("hf://nobody/nothing", {}, "2 of 2 ranks .* out of reach"),
        ("hf://nobody/nothing", {"BROKEN_ON": "1"}, "2 of 2 ranks .* out of reach"),
    ],
    ids=["the first rank lacks it", "the second rank lacks it", "both lack it", "one of both for good"],
)
def test_a_teacher_that_a_rank_lacks_ends_all_of_them_at_its_step(make_run, ended, address, more, says):
    """Trap 7, as the operator starts it: no rank waits for the other, and what was trained before is kept."""
    teacher = {"from": address or f"file://{make_run().root}/teacher"}
    run = make_run(steps=12, workers=2, every_steps=4, teacher=teacher)
    worker = run.root / "worker.py"
    worker.write_text(TEACHERLESS)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hub = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert ended(run.launch(worker, HF_ENDPOINT=hub, HF_HOME=str(run.root / "hub"), **more)) == 4
    for name in ("report-0", "report-1", "termination-log"):
        word = run.last_word(name)
        assert (word.exit_code, word.reason, word.step) == (4, "TeacherUnavailable", 9)
        assert re.search(says, word.message)
        assert word.transient is (address is not None and not more)
        assert word.checkpoint.step == 9 or name == "report-1"
    assert [record.step for record in run.metrics()] == list(range(1, 10))
    assert not any("teacherLogits" in record.objectives for record in run.metrics())
    assert run.checkpoints() == ["step-00000008", "step-00000009"]


def test_two_nodes_find_each_other_and_stop_together(make_run, ended):
    """As PyTorchJob starts them. One pod asked to stop stops both, with one checkpoint, within 15 s."""
    run = make_run(steps=3000, workers=2, every_steps=2500)
    port = free_port()
    nodes = launch_nodes(run, port=port)
    run.wait_for_step(5, nodes[0])
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress") as answer:
        seen = Progress.model_validate_json(answer.read())
    assert (seen.world_size, seen.total_steps) == (2, 3000)
    assert seen.step >= 5

    began = time.monotonic()
    nodes[1].send_signal(signal.SIGTERM)
    assert ended(nodes[0]) == ExitCode.PREEMPTED
    assert nodes[1].poll() is None
    # As when its job, which ended with the other pod, removes what is left of it.
    nodes[1].send_signal(signal.SIGTERM)
    assert ended(nodes[1]) == ExitCode.PREEMPTED
    assert time.monotonic() - began < 15
    words = [run.last_word(f"node-{rank}") for rank in (0, 1)]
    assert {word.reason for word in words} == {"Preempted"}
    assert words[0].checkpoint == words[1].checkpoint
    assert words[0].checkpoint.step == words[0].step == run.metrics()[-1].step < 3000
    assert run.checkpoints() == [f"step-{words[0].step:08d}"]


@pytest.mark.parametrize(
    ("workers", "asked", "outlives"),
    [
        pytest.param(2, "signal", True, id="the others end because it was asked to stop"),
        pytest.param(2, None, False, id="it ended because another was asked to stop"),
        pytest.param(2, "told", False, id="it was told to and is not removed"),
        pytest.param(1, "signal", False, id="there is no other"),
    ],
)
def test_the_pod_that_was_asked_to_stop_outlives_the_others(
    make_run, ended, monkeypatch, workers, asked, outlives
):
    """A job ends with the first pod that does; so that one had better be no pod that is being removed."""
    run = make_run(workers=workers)
    monkeypatch.setenv(TOLD, str(run.root / "told.json"))
    script = "print('ready', flush=True)\ntime.sleep(0.5)\nif ASKED: time.sleep(60)\nos._exit(143)"
    nodes = launch_nodes(run, stand_in(run, script.replace("ASKED", repr(asked))), count=workers)
    for node in nodes:
        assert "ready\n" in iter(node.stdout.readline, "")
    if asked == "signal":
        nodes[-1].send_signal(signal.SIGTERM)
    elif asked == "told":
        (run.root / "told.json").write_text('{"stop": true}')
    assert ended(nodes[-1]) == ExitCode.PREEMPTED
    said = (run.root / f"node-{workers - 1}").stat().st_mtime
    assert (time.time() - said > OUTLIVE_SECONDS) is outlives
    for other in nodes[:-1]:
        other.terminate()
        ended(other)


def test_a_node_that_waits_for_the_others_stops_when_asked(make_run, ended):
    run = make_run(workers=2)
    process = run.launch(PET_NNODES="2", PET_NODE_RANK="1", PET_MASTER_ADDR="127.0.0.1", PET_MASTER_PORT="9")
    # It listens before it begins to wait.
    while not catches(process, signal.SIGTERM):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == ExitCode.PREEMPTED
    assert run.last_word().message == "asked to stop before training began"


def catches(process, number):
    """Whether it has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = re.findall(r"^SigCgt:\s*([0-9a-f]+)$", status, re.M)
    return bool(int(caught, 16) >> number - 1 & 1)


@pytest.mark.parametrize("late", [False, True], ids=["that trains", "that was just starting"])
def test_no_rank_outlives_a_killed_launcher(make_run, ended, late):
    run = make_run(workers=2)
    script = f"""
from pathlib import Path
from bitnet_trainer.stop import end_with_launcher
launcher = os.getppid()
Path(__file__).with_name(f"{{rank}}.pid").write_text(str(os.getpid()))
while {late} and os.getppid() == launcher:
    time.sleep(0.05)
end_with_launcher()
time.sleep(600)
"""
    process = launch_stand_in(run, script)
    pids = [run.root / f"{rank}.pid" for rank in (0, 1)]
    deadline = time.monotonic() + 180
    while not all(pid.exists() and pid.read_text() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    ended(process)
    while any(Path("/proc", pid.read_text()).exists() for pid in pids):
        assert time.monotonic() < deadline, "a rank still runs"
        time.sleep(0.1)


@pytest.mark.parametrize("content", [None, "{}"])
def test_an_order_that_cannot_be_read_is_bad_input(tmp_path, content):
    order = tmp_path / "order.json"
    if content is not None:
        order.write_text(content)
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-m", "bitnet_trainer", "--order", str(order)],
        env={**os.environ, "BITNET_TERMINATION_LOG": str(log)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.BAD_INPUT
    word = json.loads(log.read_text())
    assert word["reason"] == "BadInput"
    assert str(order) in word["message"]
    assert "Traceback" not in done.stderr


def test_a_stale_world_size_is_refused(make_run):
    """Trap 2: a job whose pods are not as many as the ledger's must not train on."""
    run = make_run(workers=2)
    with pytest.raises(BadInput, match="3 nodes x 1 processes, and the order was made for 2 x 1"):
        find_place(run.order, {"PET_NNODES": "3", "PET_NPROC_PER_NODE": "auto"})


def test_without_pytorchjobs_variables_all_ranks_run_here(make_run):
    place = find_place(make_run(workers=2).order, {})
    assert (place.nodes, place.node_rank, place.processes) == (1, 0, 2)
