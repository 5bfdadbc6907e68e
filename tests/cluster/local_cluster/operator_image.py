"""Builds the operator's image with the checkout's own Dockerfile, on a Debian made on this machine."""

from __future__ import annotations

import ast
import hashlib
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_cluster.build import Report, publish
from local_cluster.settings import cache_folder
from local_cluster.shell import find_program, run

OPERATOR_IMAGE = "docker.io/local/bitnet-operator:1"
PYTHON_IMAGE = "docker.io/local/python:1"
"""What the image is built from in place of Docker's Python: Debian's, which needs no registry."""

DEBIAN = "bookworm"
_PIN = "etc/apt/preferences.d/usrmerge"
BASE_OPTIONS = (
    "--variant=apt",
    "--include=python3,python3-venv,ca-certificates",
    # The root is merged from the start: Debian's usrmerge would bring 55 MB of Perl to do it later.
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    rf'--setup-hook=printf "Package: usrmerge\nPin: release *\nPin-Priority: -1\n" >"$1/{_PIN}"',
    # The second one holds this machine's settings.
    f'--customize-hook=rm "$1/{_PIN}" "$1/etc/apt/apt.conf.d/99mmdebstrap"',
    *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "info", "locale", "man")),
)
KEPT = 3
"""Images of the operator that the cache holds."""
UNFINISHED = "unfinished-"
AUTHORITY = "pip-ca.crt"
"""Name of the secret with the authorities that pip trusts; the Dockerfile knows it, and `pip.conf`."""


def operator_image(checkout: Path, report: Report = print) -> Path:
    """The docker-archive of `OPERATOR_IMAGE`, built now unless the cache has this checkout's.

    It takes two minutes of a core from nothing, and one where the base is there.

    Raises:
        MissingRequirement: no buildah or no mmdebstrap.
        CommandFailed: a step failed; its own words are in the message.
    """
    finished = cache_folder() / "images" / "operator" / operator_key(checkout)
    if not finished.is_dir():
        base = _base(report)
        report("building the operator's image …")
        with _unfinished(finished) as (content, work):
            _build(checkout, base, content / "operator.tar", work)
        remove_all_but(KEPT, finished.parent)
    return finished / "operator.tar"


def operator_key(checkout: Path) -> str:
    """sha256 over the Dockerfile, what .dockerignore lets it see, and what the base is made with."""
    digest = hashlib.sha256(_base_key().encode())
    for path in sorted({checkout / "Dockerfile", checkout / ".dockerignore", *build_context(checkout)}):
        content = path.read_bytes()
        digest.update(f"\0{path.relative_to(checkout)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def build_context(checkout: Path) -> Iterator[Path]:
    """The files that .dockerignore lets in: it leaves out all but what a line with `!` names."""
    for line in (checkout / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            named = checkout / line.removeprefix("!")
            found = [named] if named.is_file() else named.rglob("*")
            yield from (path for path in found if path.is_file() and "__pycache__" not in path.parts)


def pip_settings(listed: str) -> tuple[str, Path | None]:
    """What `pip config list` listed, as a pip.conf for the build; and the file of authorities that it trusts,
    which the build sees as the secret `AUTHORITY`.
    """
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = ast.literal_eval(value)  # the environment's come last, and win
    certificates = settings.get("cert")
    if certificates:
        settings["cert"] = f"/run/secrets/{AUTHORITY}"
    # pip reads a further line of a value where it is indented.
    lines = [f"{name} = {value.strip()}".replace("\n", "\n  ") for name, value in settings.items()]
    return "\n".join(["[global]", *lines, ""]), Path(certificates) if certificates else None


def remove_all_but(kept: int, folder: Path) -> None:
    """Removes all but the newest images of a folder; each change of source makes another of 180 MB."""
    images = [path for path in folder.iterdir() if not path.name.startswith(UNFINISHED)]
    for image in sorted(images, key=lambda path: path.stat().st_mtime)[:-kept]:
        shutil.rmtree(image)


def apt_settings(dumped: str) -> str:
    """Those of the settings that `apt-config dump` printed that say how packages are fetched."""
    wanted = ("Acquire::http", "Acquire::Check-", "Acquire::Languages")
    return "".join(line for line in dumped.splitlines(keepends=True) if line.startswith(wanted))


def _build(checkout: Path, base: Path, archive: Path, work: Path) -> None:
    # chroot and vfs: nothing that a machine without user namespaces or overlayfs lacks.
    buildah = [find_program("buildah"), "--root", work / "store", "--runroot", work / "run"]
    buildah += ["--storage-driver", "vfs"]
    container = run([*buildah, "from", "scratch"]).strip()
    run([*buildah, "add", "--quiet", container, base, "/"])
    run([*buildah, "commit", "--quiet", "--rm", container, PYTHON_IMAGE])
    content, authorities = pip_settings(run([sys.executable, "-m", "pip", "config", "list"]))
    settings = work / "pip.conf"
    settings.touch(mode=0o600)  # an index's address may hold a password
    settings.write_text(content)
    secrets = ["--secret", f"id=pip.conf,src={settings}"]
    if authorities is not None:
        secrets += ["--secret", f"id={AUTHORITY},src={authorities}"]
    options = ["--isolation", "chroot", "--build-arg", f"BASE={PYTHON_IMAGE}", *secrets]
    options += ["--target", "operator", "--tag", OPERATOR_IMAGE]
    run(["nice", *buildah, "build", *options, checkout])
    run([*buildah, "push", "--quiet", OPERATOR_IMAGE, f"docker-archive:{archive}:{OPERATOR_IMAGE}"])


def _base_key() -> str:
    words = [platform.machine(), DEBIAN, *BASE_OPTIONS]
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


def _base(report: Report) -> Path:
    """The tar of a root with Debian's Python, made now unless the cache has it."""
    finished = cache_folder() / "images" / "python" / _base_key()
    if not finished.is_dir():
        report("making a Debian with Python …")
        with _unfinished(finished) as (content, work):
            # mmdebstrap knows nothing of how this machine reaches its packages, such as a proxy.
            settings = work / "apt.conf"
            settings.touch(mode=0o600)
            settings.write_text(apt_settings(run([find_program("apt-config"), "dump", "--no-empty"])))
            options = [*BASE_OPTIONS, f"--aptopt={settings}"]
            run(["nice", find_program("mmdebstrap"), *options, DEBIAN, content / "root.tar"])
    return finished / "root.tar"


@contextmanager
def _unfinished(finished: Path) -> Iterator[tuple[Path, Path]]:
    """A folder that becomes `finished` where the block ends well, and one for what is of no use later."""
    finished.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=finished.parent) as name:
        content, work = Path(name) / "content", Path(name) / "work"
        content.mkdir()
        work.mkdir()
        yield content, work
        publish(content, finished)
