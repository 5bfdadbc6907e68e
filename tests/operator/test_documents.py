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
    ],
)
def test_a_file_without_one_run_is_refused(tmp_path: Path, text: str, words: str) -> None:
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
