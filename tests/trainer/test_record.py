"""run.json: which source trained, in a git checkout and out of one."""

import subprocess

import pytest

from bitnet_trainer.record import revision, versions


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with one file in it, and a function that runs git there."""

    def git(*arguments):
        author = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        asked = ["git", "-C", str(tmp_path), *author, *arguments]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "record.py").write_text("1\n")
    git("init", "-q")
    git("add", "record.py")
    git("commit", "-qm", "one")
    return tmp_path, git


def test_a_checkout_has_its_commit_and_says_where_it_is_changed(checkout):
    folder, git = checkout
    head = git("rev-parse", "HEAD")
    git("tag", "-m", "a tag names it no other way", "v1")
    assert revision(folder / "record.py") == head
    (folder / "record.py").write_text("2\n")
    assert revision(folder / "record.py") == f"{head}-dirty"


def test_what_is_installed_into_a_checkout_is_no_part_of_it(checkout, tmp_path_factory, monkeypatch):
    folder, _ = checkout
    installed = folder / ".venv" / "record.py"
    installed.parent.mkdir()
    installed.write_text("1\n")
    assert revision(installed) is None
    assert revision(tmp_path_factory.mktemp("nowhere") / "record.py") is None
    monkeypatch.setenv("PATH", "")
    assert revision(folder / "record.py") is None


def test_versions_are_of_python_and_of_what_decides_a_step():
    assert {"python", "torch", "transformers", "tokenizers"} <= set(versions())
