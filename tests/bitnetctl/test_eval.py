"""`bitnetctl eval`: a run's perplexity on a text beside its teacher's, and what it says where it cannot."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM


def test_a_run_against_its_teacher(finished: Any, inputs: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{2 + 7 * place % 58}" for place in range(53)))
    run, teacher = str(finished.run_folder), str(inputs / "teacher")
    code, output = finished("eval", run, "--text", str(text), "--against", teacher, "--sequence-length", "16")
    assert code == 0, output
    title, heading, *lines = output.splitlines()
    # Three sequences of 16 tokens and one of 5, the first of each being given.
    assert title == f"49 tokens of {text} predicted, in sequences of 16"
    assert heading.split() == ["perplexity", "tokens/s", "bytes", "model"]
    rows = [line.split() for line in lines]
    assert [row[3] for row in rows] == [run, teacher]
    original = AutoModelForCausalLM.from_pretrained(inputs / "teacher")
    size = sum(tensor.nbytes for tensor in (*original.parameters(), *original.buffers()))
    assert rows[1][2] == f"{size:,}"
    # The text is of the kind that the run was trained on, and its teacher is random.
    assert 1 < float(rows[0][0]) < 0.9 * float(rows[1][0])


def test_what_cannot_be_measured_is_a_paragraph(finished: Any, inputs: Path) -> None:
    code, output = finished("eval", str(inputs / "model"), "--text", "/nowhere/text")
    assert (code, output.count("\n")) == (2, 1), output
    assert "the text /nowhere/text cannot be read" in output
