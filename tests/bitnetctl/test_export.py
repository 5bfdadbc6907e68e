"""`bitnetctl export`: the run's own export once more, other formats, and what it says where it cannot."""

from pathlib import Path
from typing import Any

from safetensors.numpy import load_file


def test_a_run_is_exported_again_and_in_other_formats(finished: Any, tmp_path: Path) -> None:
    formats = ("HuggingFace", "HuggingFacePacked", "Packed")
    code, output = finished(
        "export", str(finished.run_folder), *(f"--format={name}" for name in formats), "--to", str(tmp_path)
    )
    assert code == 0, output
    assert output.splitlines()[0] == f"step 12 of {finished.run_folder}"
    for name, line in zip(formats, output.splitlines()[1:], strict=True):
        place = tmp_path / name.lower()
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        assert line.split() == [name, f"{size:,}", "bytes", str(place)]
    again = load_file(tmp_path / "huggingface/model.safetensors")
    own = load_file(finished.run_folder / "export/huggingface/model.safetensors")
    assert again.keys() == own.keys()
    assert all((again[name] == own[name]).all() for name in own)


def test_what_cannot_be_exported_is_a_paragraph(finished: Any, tmp_path: Path) -> None:
    code, output = finished("export", str(tmp_path), "--format", "Packed")
    assert (code, output.count("\n")) == (2, 1), output
    assert f"{tmp_path} is neither a run's folder" in output
    code, output = finished("export", str(finished.run_folder), "--format", "ONNX")
    assert (code, output.count("\n")) == (2, 1), output
    assert "ONNX is no format of an export. Choose among HuggingFace, " in output
