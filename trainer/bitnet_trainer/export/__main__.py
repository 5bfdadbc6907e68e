"""`python -m bitnet_trainer.export SOURCE --format NAME --to FOLDER`: exports a run's trained model."""

import argparse
import sys
from pathlib import Path
from typing import get_args

from bitnet_crds.spec import ExportFormat
from bitnet_trainer.command import run_command
from bitnet_trainer.export.formats import write_export
from bitnet_trainer.export.trained import load_trained


def main() -> None:
    """Writes each format and prints where it is."""
    parser = argparse.ArgumentParser(prog="python -m bitnet_trainer.export")
    parser.add_argument("source", type=Path)
    parser.add_argument("--format", action="append", choices=get_args(ExportFormat), required=True)
    parser.add_argument("--to", type=Path)
    arguments = parser.parse_args()
    sys.exit(run_command(lambda: _export(arguments.source, tuple(arguments.format), arguments.to)))


def _export(source: Path, formats: tuple[ExportFormat, ...], to: Path | None) -> None:
    trained = load_trained(source, formats)
    print(f"step {trained.step:,} of {trained.run}")
    for name in formats:
        place = write_export(
            name, to or trained.run / "export", trained.model, trained.tokenizer, trained.report
        )
        files = [file for file in place.rglob("*") if file.is_file()] if place.is_dir() else [place]
        print(f"{name:<18} {sum(file.stat().st_size for file in files):>14,} bytes  {place}")


if __name__ == "__main__":
    main()
