"""Reading runs from files, and the examples as a person would read them."""

from pathlib import Path

import pytest
import yaml

from bitnet_crds import InvalidRun, parse_run, plan
from bitnet_operator.documents import check_local_files, read_document

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_has_a_plan(path: Path) -> None:
    assert plan(parse_run(read_document(path)).spec).total_steps > 0


def test_both_quickstarts_are_the_same_run() -> None:
    here, there = (
        parse_run(read_document(EXAMPLES / f"{name}.yaml")).spec
        for name in ("quickstart", "quickstart-cluster")
    )
    assert plan(here) == plan(there)


def test_relative_addresses_count_from_the_files_own_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    file = tmp_path / "runs/run.yaml"
    file.write_text(yaml.safe_dump({"a": ["file://./x", "file://../y/z", "file:///abs", "pvc://c/./d", 3]}))
    assert read_document(file)["a"] == [
        f"file://{tmp_path}/runs/x",
        f"file://{tmp_path}/y/z",
        "file:///abs",
        "pvc://c/./d",
        3,
    ]


def test_other_kinds_may_stand_beside_the_run(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("kind: PersistentVolumeClaim\n---\nkind: BitNetRun\nmetadata: {name: a}\n")
    assert read_document(file)["metadata"] == {"name": "a"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds 0 runs"),
        ("- a\n- b\n", "holds 0 runs"),
        ("kind: BitNetRun\n---\nkind: BitNetRun\n", "holds 2 runs"),
        ("a: [", "not YAML"),
        ("a: 1\nb: 2\na: 3\n", "line 3: `a` is written twice, first in line 1"),
        ("a: {b: 1, b: 1}\n", "line 1: `b` is written twice"),
        ("a: 1\nseed: 2024-02-30\n", "line 2: '2024-02-30': day is out of range"),
        ("seed: 0x_\n", "line 1: '0x_': invalid literal"),
        (f"seed: {'9' * 5000}\n", "line 1: '9+': Exceeds the limit"),
        (f"seed: 0x{'f' * 5000}\n", "line 1: '0xf+': Exceeds the limit"),
        ("seed: !!bool maybe\n", "line 1: 'maybe'"),
        ("seed: !!timestamp soon\n", "line 1: 'soon'"),
        ("a: &a [*a]\n", "unconstructable recursive node"),
        ("a: " + "[" * 5000, "nested too deep"),
        ('a: [{b: "file://./a\\0b"}]\n', r"a\[0\].b: 'file://./a.x00b' leads nowhere: embedded null byte"),
        ("a: file://./loop/x\n", "a: file://./loop/x leads nowhere: Symlink loop"),
    ],
)
def test_a_file_without_one_run_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(InvalidRun, match=words):
        read_document(file)


def test_every_file_that_is_missing_is_named_at_once(tmp_path: Path, document: dict) -> None:
    document["spec"]["checkpoint"]["uri"] = f"file://{tmp_path}/runs"
    with pytest.raises(InvalidRun) as invalid:
        check_local_files(parse_run(document).spec, "team", "small")
    fields = [problem.field for problem in invalid.value.problems]
    assert fields == ["spec.model.from", "spec.teacher.from", "spec.data.sources[0].uri"]
    assert list(tmp_path.iterdir()) == []


def test_what_an_anchor_repeats_is_not_written_twice(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("base: &base {a: 1, b: 2}\none: {<<: *base, a: 3}\ntwo: [*base, *base]\n")
    same = {"a": 1, "b": 2}
    assert read_document(file) == {"base": same, "one": {"a": 3, "b": 2}, "two": [same, same]}


@pytest.mark.parametrize("path", [f"/{'n' * 256}", "/a\0b", "{folder}/loop/x"], ids=["long", "null", "loop"])
def test_a_path_that_cannot_be_is_a_problem(tmp_path: Path, document: dict, path: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    address = f"file://{path.format(folder=tmp_path)}"
    spec = document["spec"]
    spec["model"]["from"] = spec["teacher"]["from"] = spec["checkpoint"]["uri"] = address
    spec["data"]["sources"][0]["uri"] = address
    with pytest.raises(InvalidRun) as invalid:
        check_local_files(parse_run(document).spec, "team", "small")
    fields = {problem.field for problem in invalid.value.problems}
    assert fields == {
        "spec.model.from",
        "spec.teacher.from",
        "spec.data.sources[0].uri",
        "spec.checkpoint.uri",
    }


def test_a_folder_that_cannot_be_read_is_a_problem(
    tmp_path: Path, document: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root reads every folder, so the refusal is made up."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    document["spec"]["model"]["from"] = f"file://{tmp_path}"
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InvalidRun, match=f"spec.model.from: {tmp_path} cannot be read: Permission denied"):
        check_local_files(parse_run(document).spec, "team", "small")


def test_a_run_in_a_bucket_needs_a_folder_here_all_the_same(
    document: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("text")
    spec = document["spec"]
    spec["model"]["from"] = spec["teacher"]["from"] = "hf://a/b"
    spec["data"]["sources"][0]["uri"] = f"file://{tmp_path}"
    spec["checkpoint"]["uri"] = "gs://bucket/runs"
    monkeypatch.setenv("BITNET_RUN_CACHE", str(tmp_path / "cache"))
    check_local_files(parse_run(document).spec, "team", "small")
    monkeypatch.setenv("BITNET_RUN_CACHE", str(tmp_path / "text.txt"))
    with pytest.raises(InvalidRun, match=r"BITNET_RUN_CACHE: .* cannot be written"):
        check_local_files(parse_run(document).spec, "team", "small")


def test_a_presets_tokenizer_is_looked_for_and_what_is_fetched_is_not(document: dict, tmp_path: Path) -> None:
    spec = document["spec"]
    spec["model"] = {"preset": "BitNetLlama-1M", "tokenizer": "file:///nowhere/tokenizer"}
    spec["teacher"]["from"] = "gs://bucket/teacher"
    spec["data"]["sources"][0]["uri"] = f"file://{tmp_path}"
    spec["checkpoint"]["uri"] = f"file://{tmp_path}/runs"
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(InvalidRun) as invalid:
        check_local_files(parse_run(document).spec, "team", "small")
    assert [problem.field for problem in invalid.value.problems] == ["spec.model.tokenizer"]
