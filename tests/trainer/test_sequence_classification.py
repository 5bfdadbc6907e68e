"""Classifiers of sequences: the token they read, the weights they keep, a real task in 1.58 bits."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BitNetForCausalLM,
    PreTrainedModel,
    Qwen3ForSequenceClassification,
)

from bitnet_trainer.batch import Rows
from bitnet_trainer.errors import BadInput
from bitnet_trainer.evaluate import count_correct
from bitnet_trainer.models.bitnet_llama import BitNetLlama, BitNetLlamaConfig, as_huggingface_bitnet
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.presets import build_preset
from bitnet_trainer.models.sequence_classification import (
    BitNetLlamaForSequenceClassification,
    classifier_from,
)
from bitnet_trainer.objectives.classification import classification_loss
from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.warmup import set_lambda

LABELS = ("negative", "neutral", "positive")
REVIEWS = Path(__file__).parent / "data" / "reviews.jsonl"
FAMILIES = ["llama", "qwen2", "qwen3", "bitnet_llama", "headless"]


@pytest.fixture
def make_lm(make_model: Any) -> Any:
    def make(family: str) -> PreTrainedModel:
        if family not in ("bitnet_llama", "headless"):
            lm: PreTrainedModel = make_model(family)
            return lm
        torch.manual_seed(0)
        return BitNetLlama(
            BitNetLlamaConfig(
                vocab_size=61,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                initializer_range=0.2,
                has_lm_head=family == "bitnet_llama",
            )
        ).eval()

    return make


def padded(left: bool) -> tuple[Tensor, Tensor]:
    """Input and mask (4, 8) of rows that are 8, 5, 1 and 3 tokens long; token 1 is padding alone."""
    lengths = torch.tensor([[8], [5], [1], [3]])
    places = torch.arange(8)
    mask = places >= 8 - lengths if left else places < lengths
    input_ids = torch.randint(2, 61, (4, 8), generator=torch.Generator().manual_seed(4))
    return input_ids.masked_fill(~mask, 1), mask.long()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("left", [True, False])
def test_each_row_is_read_at_its_last_token(make_lm: Any, family: str, left: bool) -> None:
    classifier = classifier_from(make_lm(family), LABELS)
    input_ids, mask = padded(left)
    found = classifier(input_ids=input_ids, attention_mask=mask).logits
    assert found.shape == (4, 3)
    for row in range(4):
        alone = input_ids[[row]][:, mask[row].bool()]
        hidden = classifier.model(input_ids=alone).last_hidden_state[0, -1]
        torch.testing.assert_close(found[row], classifier.score(hidden), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backbone_is_the_causal_lms_own(make_lm: Any, family: str) -> None:
    lm = make_lm(family)
    before = lm.model(input_ids=padded(False)[0]).last_hidden_state
    torch.manual_seed(7)
    classifier = classifier_from(lm, LABELS)
    assert type(classifier).__name__ == {
        "llama": "LlamaForSequenceClassification",
        "qwen2": "Qwen2ForSequenceClassification",
        "qwen3": "Qwen3ForSequenceClassification",
    }.get(family, "BitNetLlamaForSequenceClassification")
    assert classifier.model is lm.model
    assert not any(parameter.is_meta for parameter in classifier.parameters())
    assert torch.equal(classifier.model(input_ids=padded(False)[0]).last_hidden_state, before)
    assert classifier.config.id2label == {0: "negative", 1: "neutral", 2: "positive"}
    assert classifier.config.label2id == {"negative": 0, "neutral": 1, "positive": 2}
    assert len(lm.config.id2label) == 2
    assert not classifier.training
    torch.manual_seed(7)
    assert torch.equal(classifier_from(lm, LABELS).score.weight, classifier.score.weight)
    assert classifier.score.weight.std().item() == pytest.approx(0.2, rel=0.3)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_saved_and_loaded_by_the_auto_class(make_lm: Any, family: str, tmp_path: Path) -> None:
    classifier = classifier_from(make_lm(family), LABELS)
    classifier.save_pretrained(tmp_path)
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    input_ids, mask = padded(left=False)
    arguments = {"input_ids": input_ids, "attention_mask": mask}
    assert torch.equal(loaded(**arguments).logits, classifier(**arguments).logits)
    assert loaded.config.id2label[2] == "positive"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("converted_first", [True, False])
def test_it_converts_before_or_after(make_lm: Any, family: str, converted_first: bool) -> None:
    model = make_lm(family)
    if converted_first:
        convert(model)
        model = classifier_from(model, LABELS)
    else:
        model = classifier_from(model, LABELS)
        assert convert(model).left == ("score",)
    set_lambda(model, 1.0)
    assert sum(isinstance(module, BitLinear) for module in model.modules()) == 2 * 7
    input_ids, mask = padded(left=False)
    model(input_ids=input_ids, attention_mask=mask).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_padding_is_known_by_the_mask_and_not_by_its_token(make_lm: Any) -> None:
    classifier = classifier_from(make_lm("bitnet_llama"), LABELS)
    input_ids, mask = padded(left=False)
    expected = classifier(input_ids, mask).logits
    other = input_ids.masked_fill(mask == 0, 33)
    classifier.config.pad_token_id = int(input_ids[0, -1])
    torch.testing.assert_close(classifier(other, mask).logits, expected)


def test_a_row_of_padding_is_read_at_its_first_position_and_is_finite(make_lm: Any) -> None:
    classifier = classifier_from(make_lm("bitnet_llama"), LABELS)
    input_ids, mask = padded(left=True)
    mask[1] = 0
    logits = classifier(input_ids, mask).logits
    hidden = classifier.model(input_ids, mask).last_hidden_state
    torch.testing.assert_close(logits[1], classifier.score(hidden[1, 0]))
    logits.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in classifier.parameters())


def test_a_mask_of_blocks_is_refused(make_lm: Any) -> None:
    classifier = classifier_from(make_lm("bitnet_llama"), LABELS)
    with pytest.raises(BadInput, match="one row a sequence"):
        classifier(padded(left=True)[0], torch.ones(4, 8, 8, dtype=torch.bool))


@pytest.mark.parametrize(("end", "padding"), [(5, 5), ([6, 7], 6)])
def test_without_a_padding_token_it_is_the_end_of_text(make_model: Any, end: Any, padding: int) -> None:
    classifier = classifier_from(make_model("qwen3", pad_token_id=None, eos_token_id=end), LABELS)
    assert isinstance(classifier, Qwen3ForSequenceClassification)
    assert classifier.config.pad_token_id == padding
    assert classifier(input_ids=torch.tensor([[9, 8, padding], [9, 8, 7]])).logits.shape == (2, 3)


def test_what_cannot_be_a_classifier_is_refused(make_lm: Any, make_model: Any) -> None:
    with pytest.raises(BadInput, match="no pad_token_id and no eos_token_id"):
        classifier_from(make_model("llama", pad_token_id=None, eos_token_id=None), LABELS)
    theirs = as_huggingface_bitnet(make_lm("bitnet_llama"))
    theirs.config.pad_token_id = 0
    with pytest.raises(BadInput, match="no classifier of sequences is known for BitNetForCausalLM"):
        classifier_from(BitNetForCausalLM(theirs.config), LABELS)


def reviews() -> tuple[Rows, Rows, int]:
    """600 rows to train on and 200 to test with, and the vocabulary: words that come twice in the former."""
    records = [json.loads(line) for line in REVIEWS.read_text(encoding="utf-8").splitlines()]
    texts = [re.findall(r"[a-z']+|[!?]", record["text"].lower()) for record in records]
    counts = Counter(word for text in texts[:600] for word in text)
    known = {word: 2 + place for place, word in enumerate(word for word in counts if counts[word] > 1)}
    length = max(map(len, texts))
    rows = [[known.get(word, 1) for word in text] for text in texts]
    input_ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    classes = torch.tensor([int(record["label"] == "positive") for record in records])
    whole = Rows(input_ids=input_ids, labels=input_ids, attention_mask=mask, classes=classes)
    return whole[:600], whole[600:], 2 + len(known)


def test_a_ternary_classifier_learns_whether_people_liked_a_film() -> None:
    training, unseen, vocabulary = reviews()
    torch.manual_seed(0)
    model = classifier_from(build_preset("BitNetLlama-1M", vocabulary), ("negative", "positive")).train()
    assert isinstance(model, BitNetLlamaForSequenceClassification)
    convert(model)
    set_lambda(model, 1.0)
    before, count = count_correct(model, unseen, 100)
    assert (count, int(unseen.classes.sum())) == (200, 100)
    assert before < 0.6 * count
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    steps = 60
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 10) * (1 - step / steps)
        chosen = torch.randperm(600)[:32]
        mask = training.attention_mask[chosen]
        mask = mask[:, : int(mask.sum(dim=1).max())]
        hidden = model.model(training.input_ids[chosen, : mask.shape[1]], mask).last_hidden_state
        loss = classification_loss(hidden, model.score, mask.bool(), training.classes[chosen])
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
    correct, _ = count_correct(model, unseen, 100)
    # By chance 120 of 200 are right once in 500 times.
    assert correct > 0.6 * count
