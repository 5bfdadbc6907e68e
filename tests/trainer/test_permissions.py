"""Folders that the user that trains may not enter, list or read: an error with its mend, no traceback."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.data import SourceText, open_source
from bitnet_trainer.errors import CheckpointError, DataUnavailable

NOBODY = 65534


@pytest.fixture
def unprivileged():
    """A folder of a user whom permissions bind: root reads everything, so as root the test changes user."""
    folder = Path(tempfile.mkdtemp())
    root = os.geteuid() == 0
    if root:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for inner in folder.rglob("*"):
            if inner.is_dir():
                inner.chmod(0o700)
        shutil.rmtree(folder)


@pytest.mark.parametrize("mode", [0o000, 0o600])
def test_checkpoints_in_a_folder_that_may_not_be_entered(unprivileged, mode):
    locked = unprivileged / "locked"
    (locked / "run" / "step-00000005").mkdir(parents=True)
    locked.chmod(mode)
    store = LocalStore(locked / "run", 1)
    with pytest.raises(CheckpointError, match=r"checkpoint\.uri: .*Permission denied.*Make it writable"):
        store.prepare()
    with pytest.raises(CheckpointError, match=r"checkpoint\.uri: .*Permission denied.*Make it readable"):
        store.committed()


@pytest.mark.parametrize("locked", ["run", "run/step-00000005"])
def test_checkpoints_that_may_not_be_listed_are_not_taken_for_none(unprivileged, locked):
    (unprivileged / "run" / "step-00000005").mkdir(parents=True)
    (unprivileged / locked).chmod(0o000)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)"):
        LocalStore(unprivileged / "run", 1).committed()


@pytest.mark.parametrize(
    ("locked", "mode", "source"),
    [
        ("texts", 0o000, "texts"),
        ("texts", 0o400, "texts"),
        ("texts", 0o000, "texts/a.txt"),
        ("texts/deeper", 0o000, "texts"),
        ("texts/deeper", 0o400, "texts"),
        ("texts/deeper/b.txt", 0o000, "texts"),
        ("texts/a.txt", 0o000, "texts/a.txt"),
    ],
)
def test_text_that_may_not_be_read_is_named_and_not_skipped(unprivileged, tokenizer, locked, mode, source):
    (unprivileged / "texts" / "deeper").mkdir(parents=True)
    for name in ("texts/a.txt", "texts/deeper/b.txt"):
        (unprivileged / name).write_text("w2")
    (unprivileged / locked).chmod(mode)
    with pytest.raises(
        DataUnavailable, match=rf"'books': .*{locked}.* cannot be read \(Permission .*Make it"
    ):
        open_source(SourceText("books", unprivileged / source), tokenizer, unprivileged / "run" / "tokens")
