"""A model, a teacher and text small enough to train whole in seconds: real formats, random weights."""

import random
from pathlib import Path
from typing import Any

VOCABULARY = 61
SEQUENCE, GLOBAL_BATCH = 16, 8


def write_inputs(folder: Path) -> None:
    """Writes `model/`, `teacher/` and `text.txt`: two random Llamas that know the words w2 to w60."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<s>", "</s>", *(f"w{number}" for number in range(2, VOCABULARY))]
    bare = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<s>"))
    bare.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<s>", eos_token="</s>", unk_token="<s>"
    )
    for seed, name in enumerate(("model", "teacher")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=True,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    draw = random.Random(0)
    (folder / "text.txt").write_text(
        " ".join(f"w{2 + (7 * place + draw.randrange(2)) % 58}" for place in range(4000))
    )


def run_document(folder: Path, name: str = "tiny", steps: int = 12) -> dict[str, Any]:
    """A run in three phases on what `write_inputs` wrote, the teacher in the last."""
    return {
        "apiVersion": "bitnet.training/v1alpha1",
        "kind": "BitNetRun",
        "metadata": {"name": name},
        "spec": {
            "model": {"from": f"file://{folder}/model"},
            "quantization": {"lambdaWarmup": {"steps": 4}},
            "data": {
                "sequenceLength": SEQUENCE,
                "sources": [{"name": "text", "uri": f"file://{folder}/text.txt"}],
            },
            "budget": {"tokens": steps * GLOBAL_BATCH * SEQUENCE, "globalBatchSize": GLOBAL_BATCH},
            "optimizer": {"adamLearningRate": 5e-3},
            "schedule": {"warmupSteps": 2},
            "phases": [
                {"name": "warmup", "until": "25%", "objectives": {"crossEntropy": {"weight": 1}}},
                {"name": "main", "until": "75%", "objectives": {"crossEntropy": {"weight": 1}}},
                {
                    "name": "distill",
                    "until": "100%",
                    "objectives": {"crossEntropy": {"weight": 0.5}, "teacherLogits": {"weight": 0.5}},
                },
            ],
            "teacher": {"from": f"file://{folder}/teacher"},
            "workers": {"count": 1, "gpusPerWorker": 0, "microBatchSize": 8},
            "checkpoint": {"uri": f"file://{folder}/runs", "everySteps": 5, "keep": 2},
        },
    }
