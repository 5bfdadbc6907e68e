"""A run that trains a classifier, from a pretrained model and from a preset: its accuracy and its exports."""

import json
import random

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bitnet_trainer.data import SourceText, open_labelled
from bitnet_trainer.evaluate import count_correct
from bitnet_trainer.models.packed import load_packed

LABELS = ("low", "high")
PHASES = [{"name": "train", "until": "100%", "objectives": {"classification": {"weight": 1}}}]


@pytest.fixture
def make_classifier(make_run):
    def make(name="classifier", **changes):
        root = make_run().root
        draw = random.Random(1)
        with (root / "labelled.jsonl").open("w") as file:
            for number in range(300):
                high = number % 2
                length = draw.randrange(3, 20)
                text = " ".join(f"w{2 + draw.randrange(40) + 18 * high}" for _ in range(length))
                file.write(json.dumps({"text": text, "label": LABELS[high]}) + "\n")
        return make_run(
            name=name,
            steps=60,
            data={
                "sequenceLength": 16,
                "sources": [{"name": "texts", "uri": f"file://{root}/labelled.jsonl"}],
                "heldOut": "20%",
            },
            classification={"labels": LABELS},
            phases=PHASES,
            teacher=None,
            **changes,
        )

    return make


def held_out(run):
    return open_labelled(
        [SourceText("texts", run.root / "labelled.jsonl", 1.0)],
        AutoTokenizer.from_pretrained(run.root / "model"),
        LABELS,
        sequence_length=16,
        held_out=run.order.spec.data.held_out,
        seed=0,
        cache=run.root / "again",
    ).held_out()


def test_a_pretrained_classifier_is_what_stock_transformers_runs(make_classifier, train_here):
    """The token that training reads is the one that transformers' own classifiers read."""
    run = make_classifier()
    result, _ = train_here(run)
    found = result.evaluation
    assert float(found.accuracy_after) > max(0.75, float(found.accuracy_before))
    assert found.perplexity_after is None
    rows = held_out(run)
    assert found.examples == len(rows)

    model = AutoModelForSequenceClassification.from_pretrained(result.artifacts["HuggingFace"])
    assert type(model).__name__ == "LlamaForSequenceClassification"
    assert model.config.id2label == dict(enumerate(LABELS))
    correct, count = count_correct(model, rows)
    assert f"{correct / count:.4f}" == found.accuracy_after
    lengths = rows.attention_mask.sum(dim=1).tolist()[:8]
    with torch.no_grad():
        alone = torch.cat([model(rows.input_ids[i : i + 1, :n]).logits for i, n in enumerate(lengths)])
        together = model(rows.input_ids[:8]).logits
    torch.testing.assert_close(alone, together)


def test_a_preset_is_trained_from_scratch_and_resumes(make_classifier, train_here, weights_of):
    changes = {
        "export": {"formats": ["Packed"]},
        "optimizer": {"adamLearningRate": 0.003},
    }
    root = make_classifier().root
    changes["model"] = {"preset": "BitNetLlama-1M", "tokenizer": f"file://{root}/model"}
    whole = make_classifier("whole", **changes)
    result, _ = train_here(whole)
    assert float(result.evaluation.accuracy_after) > 0.7
    model, _ = load_packed(whole.folder / "export" / "packed")
    correct, count = count_correct(model, held_out(whole))
    assert f"{correct / count:.4f}" == result.evaluation.accuracy_after

    parts = make_classifier("parts", **changes)
    train_here(parts, stop_at=17)
    train_here(parts)
    assert parts.figures() == whole.figures()
    expected, found = weights_of(whole), weights_of(parts)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
