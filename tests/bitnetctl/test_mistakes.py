"""A person's mistakes: one paragraph that names field and mend, exit code 2, nothing half-made."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeBitnetctl = Callable[..., Any]
Spec = dict[str, Any]


def unknown_key(spec: Spec) -> None:
    spec["budgett"] = spec.pop("budget")


def short_phases(spec: Spec) -> None:
    spec["phases"][-1]["until"] = "90%"


def idle_teacher(spec: Spec) -> None:
    spec["phases"][-1]["objectives"]["teacherLogits"]["weight"] = 0


def missing_teacher(spec: Spec) -> None:
    del spec["teacher"]


def indivisible(spec: Spec) -> None:
    spec["budget"]["globalBatchSize"] = 12


def missing_model(spec: Spec) -> None:
    spec["model"]["from"] = "file:///nowhere/model"


def claim(spec: Spec) -> None:
    spec["checkpoint"]["uri"] = "pvc://claim/runs"


def nameless(spec: Spec) -> None:
    spec["workers"]["template"] = {"spec": {"containers": [{"image": "x"}]}}


MISTAKES = [
    (unknown_key, "spec.budgett: no such key. Did you mean `budget`?"),
    (short_phases, "Write `until: 100%` there."),
    (idle_teacher, "spec.teacher: "),
    (missing_teacher, "Add spec.teacher, or set that weight to 0."),
    (indivisible, "Write a multiple of 8"),
    (nameless, "spec.workers.template.spec.containers[0]: an item of `containers` has no `name`"),
    (missing_model, "spec.model.from: there is no /nowhere/model."),
    (claim, "spec.checkpoint.uri: pvc://claim/runs is a claim of a cluster"),
]


def refused(bitnetctl: Any, words: str) -> None:
    """`run` says so, with exit code 2, and there is no trace of a run."""
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert (code, "Traceback" in output) == (2, False), output
    assert words in output
    assert not (bitnetctl.folder / "runs").exists()


@pytest.mark.parametrize(("mistake", "words"), MISTAKES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_run(make_bitnetctl: MakeBitnetctl, mistake: Callable[[Spec], None], words: str) -> None:
    bitnetctl = make_bitnetctl()
    mistake(bitnetctl.document["spec"])
    refused(bitnetctl, words)


def test_an_empty_text_file(make_bitnetctl: MakeBitnetctl, tmp_path: Path) -> None:
    bitnetctl = make_bitnetctl()
    (tmp_path / "empty.txt").touch()
    bitnetctl.document["spec"]["data"]["sources"][0]["uri"] = f"file://{tmp_path}/empty.txt"
    refused(bitnetctl, f"spec.data.sources[0].uri: {tmp_path}/empty.txt is empty.")


def test_a_checkpoint_folder_that_cannot_be_written(make_bitnetctl: MakeBitnetctl, tmp_path: Path) -> None:
    bitnetctl = make_bitnetctl()
    (tmp_path / "file").touch()
    bitnetctl.document["spec"]["checkpoint"]["uri"] = f"file://{tmp_path}/file/runs"
    refused(bitnetctl, "spec.checkpoint.uri: ")


def test_a_file_that_is_not_there_or_no_yaml(make_bitnetctl: MakeBitnetctl, tmp_path: Path) -> None:
    bitnetctl = make_bitnetctl()
    code, output = bitnetctl("plan", str(tmp_path / "none.yaml"))
    assert (code, "No such file" in output) == (2, True)
    (tmp_path / "broken.yaml").write_text("spec: [")
    code, output = bitnetctl("plan", str(tmp_path / "broken.yaml"))
    assert (code, "broken.yaml" in output, "Traceback" in output) == (2, True, False)


def no_model(folder: Path) -> Path:
    """A folder with something in it that is no model."""
    path = folder / "no-model"
    path.mkdir()
    (path / "readme.txt").write_text("nothing here")
    return path


def test_a_teacher_that_is_no_model_ends_the_run_in_the_trainers_words_until_it_is_one(
    make_bitnetctl: MakeBitnetctl, tmp_path: Path, inputs: Path
) -> None:
    bitnetctl = make_bitnetctl()
    bitnetctl.document["spec"]["teacher"]["from"] = f"file://{no_model(tmp_path)}"
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert (code, "Traceback" in output) == (2, False), output
    assert "TeacherUnavailable" in output
    assert str(tmp_path / "no-model") in output.replace("\n", "")

    # The mistake mended, the same run goes on from where it failed.
    (tmp_path / "no-model/readme.txt").unlink()
    (tmp_path / "no-model").rmdir()
    (tmp_path / "no-model").symlink_to(inputs / "teacher")
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 0, output
    reasons = [segment["reason"] for segment in bitnetctl.status()["segments"]]
    assert "Retry" in reasons


def test_plan_prints_the_ledger_and_makes_nothing(make_bitnetctl: MakeBitnetctl) -> None:
    bitnetctl = make_bitnetctl()
    code, output = bitnetctl("plan", str(bitnetctl.file))
    assert code == 0
    assert "12 steps" in output
    assert not (bitnetctl.folder / "runs").exists()


NOBODY_LISTENS = """
apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: a, user: {token: x}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
current-context: a
"""


@pytest.mark.parametrize(
    ("kubeconfig", "words"), [("", "no cluster to talk to"), (NOBODY_LISTENS, "does not answer")]
)
def test_a_cluster_that_is_not_there(
    make_bitnetctl: MakeBitnetctl,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kubeconfig: str,
    words: str,
) -> None:
    (tmp_path / "kubeconfig").write_text(kubeconfig)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    code, output = make_bitnetctl()("status", "some-run")
    assert (code, "Traceback" in output, words in output) == (2, False, True), output


def test_a_run_that_was_never_run_here(make_bitnetctl: MakeBitnetctl) -> None:
    bitnetctl = make_bitnetctl()
    file = bitnetctl.file.rename(bitnetctl.file.with_name("a run.yaml"))
    code, output = bitnetctl("status", str(file))
    assert (code, "was never run here" in output, f"`bitnetctl run '{file}'`" in output) == (2, True, True)


@pytest.mark.parametrize("text", ["", "{", "[]"])
@pytest.mark.parametrize("command", ["run", "status"])
def test_a_damaged_status_is_named_with_its_mend(
    make_bitnetctl: MakeBitnetctl, command: str, text: str
) -> None:
    bitnetctl = make_bitnetctl()
    bitnetctl.run_folder.mkdir(parents=True)
    path = bitnetctl.run_folder / "status.json"
    path.write_text(text)
    code, output = bitnetctl(command, str(bitnetctl.file))
    mend = f"Remove it, or all of {bitnetctl.run_folder} to train anew."
    assert (code, output) == (2, f"{path}: holds no status of a run. {mend}\n")


def test_brackets_and_colons_in_a_path_are_printed(make_bitnetctl: MakeBitnetctl, tmp_path: Path) -> None:
    bitnetctl = make_bitnetctl()
    bitnetctl.document["spec"]["model"]["from"] = f"file://{tmp_path}/model[v1]:smile:"
    for command, expected in (("plan", 0), ("run", 2)):
        code, output = bitnetctl(command, str(bitnetctl.file))
        assert (code, "/model[v1]:smile:" in output) == (expected, True), output


@pytest.mark.parametrize("name", ["none", "folder/none", f"./{'n' * 256}"])
def test_the_status_of_a_file_that_is_not_there(make_bitnetctl: MakeBitnetctl, name: str) -> None:
    path = name if "/" in name else f"{name}.yaml"
    code, output = make_bitnetctl()("status", path)
    assert (code, output.startswith(f"there is no {path}. ")) == (2, True), output


@pytest.mark.parametrize("command", ["plan", "run", "status"])
def test_a_pipe_is_read_once(make_bitnetctl: MakeBitnetctl, tmp_path: Path, command: str) -> None:
    bitnetctl = make_bitnetctl()
    missing_model(bitnetctl.document["spec"])
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = bitnetctl.start(command, str(pipe))
    pipe.write_text(bitnetctl.file.read_text())
    output, _ = process.communicate(timeout=180)
    words = {"plan": "12 steps", "run": "there is no /nowhere/model", "status": "was never run here"}
    assert words[command] in output


@pytest.mark.parametrize("option", ["--metrics-port", "--health-port"])
def test_a_port_of_the_operator_that_is_taken(option: str) -> None:
    other = "--health-port" if option == "--metrics-port" else "--metrics-port"
    with socket.create_server(("0.0.0.0", 0)) as taken:
        options = ["--no-leader-election", other, "0", option, str(taken.getsockname()[1])]
        process = subprocess.run(
            [Path(sys.prefix) / "bin/bitnet-operator", "--trainer-image", "x", *options],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
    assert (process.returncode, "Traceback" in process.stderr) == (2, False), process.stderr
    assert option in process.stderr


def test_a_mistake_mended_in_the_file_before_anything_was_trained(
    make_bitnetctl: MakeBitnetctl, tmp_path: Path, inputs: Path
) -> None:
    bitnetctl = make_bitnetctl(steps=4)
    bitnetctl.document["spec"]["model"]["from"] = f"file://{no_model(tmp_path)}"
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert (code, "ModelUnavailable" in output) == (2, True), output
    bitnetctl.document["spec"]["model"]["from"] = f"file://{inputs}/model"
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 0, output


def test_a_step_outside_the_run(make_bitnetctl: MakeBitnetctl) -> None:
    bitnetctl = make_bitnetctl(steps=12)
    code, output = bitnetctl("plan", str(bitnetctl.file), "--step", "12")
    assert (code, "--step: the run has no step 12. Write one from 0 to 11." in output) == (2, True)
    code, output = bitnetctl("plan", str(bitnetctl.file), "--step", "11")
    assert (code, "teacherLogits  0.5" in output) == (0, True)
