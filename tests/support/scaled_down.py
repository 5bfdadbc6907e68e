"""An example made small: tiny models of the same family and little text, every other word of it as it was."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import yaml

from bitnet_crds import Order, parse_run, plan

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRAINED = sorted(path for path in EXAMPLES.glob("*.yaml") if not path.stem.startswith("quickstart"))
"""`make quickstart` trains the one that is left out, `make test-cluster` the other."""

STEPS = 20
SEQUENCE, GLOBAL_BATCH, MICRO_BATCH = 32, 8, 4
LAYERS = 4
FAMILIES = {
    "hf://Qwen/Qwen3-0.6B": "qwen3",
    "hf://HuggingFaceTB/SmolLM2-135M": "llama",
}
"""The family of each model that an example names."""


def document(path: Path) -> dict[str, Any]:
    """The run in an example."""
    (run,) = (part for part in yaml.safe_load_all(path.read_text()) if part["kind"] == "BitNetRun")
    return run


def order_of(document: dict[str, Any]) -> Order:
    """The order that the operator would give for a run."""
    run = parse_run(document)
    return Order(namespace="default", name=run.metadata.name, job="job", spec=run.spec, plan=plan(run.spec))


def write_scene(folder: Path) -> None:
    """Writes a tiny model of each family, text, and labelled text."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", *(f"w{number}" for number in range(2, 60))]
    bare = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<s>"))
    bare.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<s>", eos_token="</s>", unk_token="<s>"
    )
    tokenizer.add_tokens(AddedToken("<|fim_pad|>", special=True))
    for family in set(FAMILIES.values()):
        _model(family, len(tokenizer)).save_pretrained(folder / family)
        tokenizer.save_pretrained(folder / family)

    draw = random.Random(0)
    counting = [f"w{2 + (7 * place + draw.randrange(2)) % 58}" for place in range(6000)]
    (folder / "text.txt").write_text(" ".join(counting))
    with (folder / "labelled.jsonl").open("w") as file:
        for number in range(400):
            favourable = number % 2
            text = " ".join(f"w{2 + draw.randrange(29) + 29 * favourable}" for _ in range(12))
            label = ("negative", "positive")[favourable]
            file.write(json.dumps({"text": text, "label": label}) + "\n")


def _model(family: str, vocabulary: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    torch.manual_seed(0)
    config = {"llama": LlamaConfig, "qwen3": Qwen3Config}[family](
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=vocabulary,
        max_position_embeddings=SEQUENCE,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config)


def scaled_down(document: dict[str, Any], scene: Path) -> dict[str, Any]:
    """A copy of an example that trains STEPS steps in seconds: sizes and addresses change, no word else."""
    document = copy.deepcopy(document)
    spec = document["spec"]
    _local_model(spec["model"], scene)
    if "teacher" in spec:
        _local_model(spec["teacher"], scene)
        if "tune" in spec["teacher"]:
            spec["teacher"]["tune"] |= {"tokens": STEPS * SEQUENCE * GLOBAL_BATCH, "learningRate": 0.01}
    text = "labelled.jsonl" if "classification" in spec else "text.txt"
    for source in spec["data"]["sources"]:
        source["uri"] = f"file://{scene}/{text}"
    spec["data"] |= {"sequenceLength": SEQUENCE, "heldOut": "10%"}
    if "everySteps" in spec["data"].get("mixture", {}):
        spec["data"]["mixture"]["everySteps"] = 5
    spec["budget"] = {"tokens": STEPS * SEQUENCE * GLOBAL_BATCH, "globalBatchSize": GLOBAL_BATCH}
    spec["optimizer"]["adamLearningRate"] = 0.01
    spec["schedule"]["warmupSteps"] = 2
    if "lambdaWarmup" in spec["quantization"]:
        spec["quantization"]["lambdaWarmup"]["steps"] = 4
    for phase in spec["phases"]:
        if "transition" in phase:
            phase["transition"]["steps"] = 2
        for objective in phase["objectives"].values():
            if "layer" in objective:
                objective["layer"] = LAYERS - 2
            if "topK" in objective:
                objective["topK"] = 8
    spec["workers"] = {"count": 1, "gpusPerWorker": 0, "microBatchSize": MICRO_BATCH}
    spec["checkpoint"] |= {"uri": f"file://{scene}/runs", "everySteps": 10}
    return document


def _local_model(model: dict[str, Any], scene: Path) -> None:
    for key in ("from", "tokenizer"):
        if key in model:
            model[key] = f"file://{scene}/{FAMILIES[model[key]]}"
    model.pop("revision", None)
