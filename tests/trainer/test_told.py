"""What pods are told: a file that is replaced as Kubernetes replaces one, and who hears of it when."""

import time

import pytest

from bitnet_crds.protocol import Told
from bitnet_trainer import told


class Volume:
    """A folder whose file is behind two links, as that of a ConfigMap or of the downward API."""

    def __init__(self, root):
        self.root, self.file, self.count = root, root / "told.json", 0

    def write(self, content):
        self.count += 1
        version = self.root / f"..version-{self.count}"
        version.mkdir()
        (version / "told.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        link = self.root / "..data.new"
        link.symlink_to(version.name)
        link.rename(self.root / "..data")
        if not self.file.is_symlink():
            self.file.symlink_to("..data/told.json")


@pytest.fixture
def volume(tmp_path, monkeypatch):
    monkeypatch.setattr(told, "LOOKED_AT_EVERY_SECONDS", 0.01)
    monkeypatch.setenv(told.TOLD, str(tmp_path / "told.json"))
    return Volume(tmp_path)


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_changes_is_heard_once_and_what_is_taken_back_too(volume):
    heard, warnings = [], []
    with told.listening(heard.append, warnings.append):
        for content in ("", "{}", '{"everySteps": 7}', '{"everySteps": 7, "newer": 1}', '{"stop": true}', ""):
            volume.write(content)
            time.sleep(0.1)
        until(lambda: len(heard) == 3)
    volume.write('{"keep": 1}')
    time.sleep(0.1)
    assert heard == [Told(every_steps=7), Told(stop=True), Told()]
    assert not warnings


def test_what_is_there_already_is_heard_before_anything_else(volume):
    volume.write('{"required": false, "skipSteps": 2}')
    heard = []
    with told.listening(heard.append, pytest.fail):
        assert heard == [Told(required=False, skip_steps=2)]


def test_an_absent_file_says_nothing(volume):
    heard = []
    with told.listening(heard.append, pytest.fail):
        time.sleep(0.1)
    assert not heard
    assert not volume.file.exists()


@pytest.mark.parametrize(
    "content", ["stop!", '{"everySteps": 0}', '{"keep": "many"}', "[]", b"\xff"], ids=lambda text: repr(text)
)
def test_what_cannot_be_read_is_warned_of_once_and_what_was_told_holds(volume, content):
    heard, warnings = [], []
    volume.write('{"keep": 4}')
    with told.listening(heard.append, warnings.append):
        volume.write(content)
        until(lambda: warnings)
        volume.write(content)
        time.sleep(0.1)
        assert heard == [Told(keep=4)]
        volume.write('{"keep": 5}')
        until(lambda: heard[1:] == [Told(keep=5)])
    (warning,) = warnings
    assert str(volume.file) in warning


def test_a_file_that_may_not_be_read_is_warned_of(volume):
    volume.file.mkdir()
    warnings = []
    with told.listening(pytest.fail, warnings.append):
        time.sleep(0.1)
    assert len(warnings) == 1
