"""House rules that no linter knows: a first line that says what lives there, room size, clean lock files."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 400
"""Lines in a file; over that it is two rooms."""


def tracked(*patterns: str) -> list[Path]:
    """Files in version control. A copy without it is not looked at."""
    listing = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("no git checkout")
    return [path for name in listing.stdout.splitlines() if (path := ROOT / name).is_file()]


def begins_with_words(path: Path) -> bool:
    """Whether the first line, less `#!` and a template's `if`, is a docstring or a comment."""
    lines = path.read_text().splitlines()
    while lines and lines[0].startswith(("#!", "{{- if")):
        del lines[0]
    return bool(lines) and re.match(r'(r?"""|#|//|/\*|\{\{-? ?/\*) ?`?\w', lines[0]) is not None


def test_every_file_says_first_what_lives_there() -> None:
    files = tracked("*.py", "*.sh", "*.go", "*.yaml", "Makefile", "Dockerfile", "requirements/*.lock")
    silent = [str(path.relative_to(ROOT)) for path in files if not begins_with_words(path)]
    assert silent == []


def test_no_room_is_too_large() -> None:
    large = {
        str(path.relative_to(ROOT)): length
        for path in tracked("*.py")
        if (length := len(path.read_text().splitlines())) > LONGEST
    }
    assert large == {}


def anchor(heading: str) -> str:
    """What GitHub calls a heading in an address."""
    return re.sub(r"[^\w\- ]", "", heading.strip("# ").lower()).replace(" ", "-")


def test_every_link_of_the_documents_leads_somewhere() -> None:
    broken = []
    for page in tracked("*.md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" in target:
                continue
            path, _, heading = target.partition("#")
            found = page.parent / path if path else page
            headings = re.findall(r"(?m)^#+ .*$", found.read_text()) if heading and found.is_file() else []
            if not found.exists() or (heading and heading not in map(anchor, headings)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


@pytest.mark.parametrize("name", ["dev", "operator", "trainer"])
def test_a_lock_pins_by_hash_and_names_no_index(name: str) -> None:
    lock = (ROOT / "requirements" / f"{name}.lock").read_text()
    assert "://" not in lock
    assert not re.search(
        r"^\s*(-i|-f|--(extra-)?index-url|--find-links|--trusted-host)\b", lock, re.MULTILINE
    )
    for requirement in re.split(r"(?m)^(?=\w)", lock)[1:]:
        assert re.match(r"[\w.-]+==[\w.!+]+", requirement)
        assert "--hash=sha256:" in requirement
