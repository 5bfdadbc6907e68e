"""The operator's image is cached under all that decides it, and built with this machine's settings."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from local_cluster.operator_image import (
    UNFINISHED,
    apt_settings,
    build_context,
    operator_key,
    pip_settings,
    remove_all_but,
)

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What decides the image's content, as far as this checkout has it."""
    for path in (CHECKOUT / "Dockerfile", CHECKOUT / ".dockerignore", *build_context(CHECKOUT)):
        copy = tmp_path / path.relative_to(CHECKOUT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "Dockerfile",
        ".dockerignore",
        "pyproject.toml",
        "requirements/operator.lock",
        "crds/bitnet_crds/spec.py",
        "operator/bitnet_operator/main.py",
        "operator/bitnet_operator/new.py",
    ],
)
def test_key_changes_with_what_the_image_is_built_from(checkout: Path, name: str) -> None:
    before = operator_key(checkout)
    assert before == operator_key(CHECKOUT)
    with (checkout / name).open("a") as file:
        file.write("\n")
    assert operator_key(checkout) != before


def test_key_stays_where_the_image_does(checkout: Path) -> None:
    before = operator_key(checkout)
    (checkout / "docs").mkdir()
    (checkout / "docs/runs.md").write_text("more")
    (checkout / "crds/bitnet_crds/__pycache__").mkdir()
    (checkout / "crds/bitnet_crds/__pycache__/spec.pyc").write_text("compiled")
    assert operator_key(checkout) == before


def test_pips_settings_go_into_the_build() -> None:
    listed = "global.index-url='https://one.example/simple'\n:env:.index-url='https://two.example/simple'\n"
    assert pip_settings(listed) == ("[global]\nindex-url = https://two.example/simple\n", None)


def test_the_authorities_go_into_the_build_as_a_secret() -> None:
    content, authorities = pip_settings("global.cert='/etc/ssl/own.crt'\n:env:.timeout='9'\n")
    assert content == "[global]\ncert = /run/secrets/pip-ca.crt\ntimeout = 9\n"
    assert authorities == Path("/etc/ssl/own.crt")


def test_no_settings_of_pips() -> None:
    assert pip_settings("") == ("[global]\n", None)


def test_how_packages_are_fetched_goes_into_the_base() -> None:
    kept = 'Acquire::http::Proxy "http://proxy.example";\nAcquire::Check-Valid-Until "false";\n'
    assert apt_settings('APT::Architecture "amd64";\n' + kept + 'Dir "/";\n') == kept


def test_the_cache_keeps_the_newest_and_what_is_being_built(tmp_path: Path) -> None:
    for age, name in enumerate(("newest", "middle", "oldest", f"{UNFINISHED}a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "operator.tar").touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    remove_all_but(2, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"newest", "middle", f"{UNFINISHED}a"}
