"""A run's trained model after the fact: found in its checkpoints, and measured beside others."""

import math

import pytest
import torch

from bitnet_trainer.checkpoint.store import MARKER
from bitnet_trainer.compare import compare, load_any, measure
from bitnet_trainer.errors import BadInput, CheckpointError, DataUnavailable, ModelUnavailable
from bitnet_trainer.export.trained import load_trained
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.packed import write_packed
from bitnet_trainer.quantization.bitlinear import BitLinear
from families import small_model
from measuring import perplexity


@pytest.fixture(autouse=True)
def _no_compiler():
    """transformers compiles its quantisers; here they run as plain PyTorch, in the same order."""
    with torch.compiler.set_stance("force_eager"):
        yield


def same_weights(one, other):
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_newest_checkpoint_is_the_model_that_the_run_measured(make_run, train_here):
    run = make_run()
    result, _ = train_here(run)
    trained = load_trained(run.folder)
    assert (trained.step, trained.run) == (12, run.folder)
    found = perplexity(trained.model, run.held_out()).value
    assert f"{found:.2f}" == result.evaluation.perplexity_after


def test_a_checkpoint_may_be_named_and_is_at_full_lambda(make_run, train_here):
    run = make_run(quantization={"lambdaWarmup": {"steps": 12}, "subLN": "AllProjections"})
    train_here(run, stop_at=7)
    newest = load_trained(run.folder)
    older = load_trained(run.folder / "checkpoints/step-00000005")
    assert (newest.step, older.step, older.run) == (7, 5, run.folder)
    assert not same_weights(newest.model, older.model)
    assert same_weights(older.model, load_trained(run.folder / "checkpoints/step-00000005").model)
    layers = [module for module in older.model.modules() if isinstance(module, BitLinear)]
    assert {layer.lam.value.item() for layer in layers} == {1.0}


def test_averaged_weights_are_what_is_evaluated_and_exported(make_run, train_here):
    run = make_run(averaging={"decay": 0.5})
    result, _ = train_here(run)
    trained = load_trained(run.folder)
    found = perplexity(trained.model, run.held_out()).value
    assert f"{found:.2f}" == result.evaluation.perplexity_after

    plain = make_run(name="plain")
    last, _ = train_here(plain)
    assert not same_weights(trained.model, load_trained(plain.folder).model)
    assert last.evaluation.perplexity_after != result.evaluation.perplexity_after
    # Nothing else is another: the averages are of the same weights.
    assert [record.loss for record in plain.metrics()] == [record.loss for record in run.metrics()]


def test_a_damaged_checkpoint_is_passed_over_and_left_as_it_is(make_run, train_here):
    run = make_run()
    train_here(run, stop_at=7)
    (run.folder / "checkpoints/step-00000007/position.json").write_text("")
    assert load_trained(run.folder).step == 5
    assert (run.folder / "checkpoints/step-00000007" / MARKER).is_file()
    with pytest.raises(
        CheckpointError, match=r"step-00000007 has no sound checkpoint \(.*position\.json has 0"
    ):
        load_trained(run.folder / "checkpoints/step-00000007")


def test_what_is_no_run_or_does_not_fit_is_refused(make_run, train_here, tmp_path):
    with pytest.raises(BadInput, match="is neither a run's folder"):
        load_trained(tmp_path)
    run = make_run()
    train_here(run, stop_at=5)
    with pytest.raises(BadInput, match="q_proj has rows of 32 weights"):
        load_trained(run.folder, ("GGUF-TQ2_0",))
    (run.folder / "run.json").write_text("{}")
    with pytest.raises(BadInput, match="of another version"):
        load_trained(run.folder)


def test_perplexity_is_that_of_each_token_by_itself():
    """Sequences of 16, the last of 5, of which the first token is given."""
    model = small_model(seed=3)
    tokens = torch.randint(2, 61, (53,), generator=torch.Generator().manual_seed(0))
    nats = []
    with torch.no_grad():
        for piece in tokens.split(16):
            chances = model(piece[None]).logits[0].double().log_softmax(-1)
            nats += [-chances[place, piece[place + 1]].item() for place in range(len(piece) - 1)]
    figures = measure(model, tokens, 16)
    assert figures.tokens == len(nats) == 49
    assert figures.perplexity == pytest.approx(math.exp(sum(nats) / 49), rel=1e-5)
    assert measure(model, tokens[:33], 16).tokens == 30
    with pytest.raises(BadInput, match="no token to measure"):
        measure(model, tokens[:1], 16)


def test_a_run_and_its_exports_are_the_same_model(make_run, train_here):
    run = make_run(export={"formats": ["HuggingFace", "HuggingFacePacked", "Packed"]})
    train_here(run)
    held_out = run.held_out().flatten()
    figures = {
        name: measure(load_any(str(run.folder / name))[0], held_out, 16)
        for name in ("", "export/packed", "export/huggingface", "export/huggingfacepacked")
    }
    expected = figures.pop("")
    for name, found in figures.items():
        assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-2), name
        assert (found.bytes < 0.8 * expected.bytes) == ("packed" in name), name


def test_models_that_cannot_be_compared(make_run, tmp_path):
    run = make_run()
    text, model = tmp_path / "text.txt", str(run.root / "model")
    text.write_text("w2 w3 w4")
    with pytest.raises(BadInput, match="reads 2 to 64 tokens at once and not 65"):
        compare(model, None, text, 65)
    words = (run.root / "teacher/tokenizer.json").read_text()
    swapped = words.replace('"w2": 2', '"w2": 3').replace('"w3": 3', '"w3": 2')
    (run.root / "teacher/tokenizer.json").write_text(swapped)
    with pytest.raises(BadInput, match="teacher reads the text as other tokens"):
        compare(model, str(run.root / "teacher"), text, 16)
    with pytest.raises(ModelUnavailable, match="/nowhere"):
        compare("/nowhere/model", None, text, 16)
    text.write_text(" \n")
    with pytest.raises(DataUnavailable, match="holds no text"):
        compare(model, None, text, 16)


def test_models_that_predict_no_token_of_a_text(tokenizer, tmp_path):
    for architecture, reads, why in (
        ("LlamaForSequenceClassification", tokenizer, "is a classifier, which predicts no token"),
        ("LlamaForCausalLM", None, "has no tokenizer"),
    ):
        model = small_model(architecture)
        folder = write_packed(model, convert(model), tmp_path / architecture, reads)
        with pytest.raises(BadInput, match=why):
            load_any(str(folder))
