"""A run that writes every format, and one that names a format that its model or tokenizer does not fit."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from bitnet_crds.spec import ExportFormat
from bitnet_trainer.errors import BadInput
from bitnet_trainer.export.gguf_tokenizer import PRE_TOKENIZERS
from bitnet_trainer.models.load import load_model
from bitnet_trainer.models.packed import load_packed
from byte_level import TEXT, byte_level_tokenizer
from families import small_model
from gguf_models import SIZES
from measuring import perplexity

ALONE = {
    "teacher": None,
    "phases": [{"name": "all", "until": "100%", "objectives": {"crossEntropy": {"weight": 1}}}],
}


@pytest.fixture(autouse=True)
def _no_compiler():
    """transformers compiles its quantisers; here they run as plain PyTorch, in the same order."""
    with torch.compiler.set_stance("force_eager"):
        yield


def with_formats(make_run, *formats, **sizes):
    """A run of four steps whose model and tokenizer fit every format, where `sizes` leave it so."""
    run = make_run(steps=4, export={"formats": formats}, **ALONE)
    small_model(**{**SIZES, **sizes}).save_pretrained(run.root / "model")
    byte_level_tokenizer(PRE_TOKENIZERS["smollm"]).save_pretrained(run.root / "model")
    (run.root / "counting.txt").write_text(TEXT * 20)
    return run


def test_every_format_is_written_and_is_the_trained_model(make_run, train_here):
    formats = ExportFormat.__args__
    run = with_formats(make_run, *formats)
    result, _ = train_here(run)
    assert set(result.artifacts) == {*formats, "LossPlot"}
    held_out, trained = run.held_out(), float(result.evaluation.perplexity_after)
    for name in ("HuggingFace", "HuggingFacePacked"):
        model = AutoModelForCausalLM.from_pretrained(result.artifacts[name])
        assert perplexity(model, held_out).value == pytest.approx(trained, rel=1e-2)
    packed, _ = load_packed(run.folder / "export" / "packed")
    assert perplexity(packed, held_out).value == pytest.approx(trained, rel=1e-3)
    for name in formats[3:]:
        # Read by transformers, whose inputs are not quantised.
        model = load_model(f"file://{result.artifacts[name]}").model
        assert perplexity(model, held_out).value == pytest.approx(trained, rel=5e-2)


def test_a_format_that_does_not_fit_is_refused_before_training(make_run, train_here):
    run = with_formats(make_run, "GGUF-TQ2_0", intermediate_size=500)
    with pytest.raises(
        BadInput, match=r"mlp\.down_proj has rows of 500 .* fit: GGUF-F16, HuggingFace, Packed"
    ):
        train_here(run)
    run = make_run(name="words", export={"formats": ["GGUF-F16"]}, **ALONE)
    run.root.joinpath("model").rename(run.root / "bytes")
    small_model().save_pretrained(run.root / "model")
    run.root.joinpath("teacher/tokenizer.json").rename(run.root / "model/tokenizer.json")
    run.root.joinpath("teacher/tokenizer_config.json").rename(run.root / "model/tokenizer_config.json")
    with pytest.raises(BadInput, match="of the kind WordLevel"):
        train_here(run)
    assert not (run.root / "runs").exists()
