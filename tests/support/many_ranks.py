"""Runs on many ranks, as real processes of a real launcher: several runs a start, since starting is dear."""

import copy
import json
import math
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bitnet_crds import Order, TerminationReport, parse_run, plan
from bitnet_crds.protocol import Evaluation
from bitnet_trainer.optim import adamw
from bitnet_trainer.report import read_metrics
from in_process import StopsAt, train_in_process
from tiny import run_document, write_inputs

STEPS = 8
CRASHED = 42
EPSILON = 1e-3
"""Of Adam: with the usual 1e-8 it makes a whole step of a gradient that is only what rounding left of a sum,
and which way depends on the order of the sum. Runs would part that do the same."""
OPTIMIZERS = {
    "AdamW": {"name": "AdamW", "adamLearningRate": 5e-3, "weightDecay": 0.01},
    "MuonClip": {
        "name": "MuonClip",
        "muonLearningRate": 0.01,
        "adamLearningRate": 5e-3,
        "weightDecay": 0.01,
        "clippingThreshold": 0.05,
    },
}
"""The threshold is so low that heads are clipped in every step."""
BARELY = 10**6
"""Steps until lambda is 1, of which a run makes STEPS."""
OF_A_LAYER = {"attentionRelations": {"weight": 1}, "hiddenStates": {"weight": 0.5}}
MEASURED = {
    "crossEntropy": {"weight": 1},
    "hiddenStates": {"weight": 0.3, "weighting": "GradientRatio"},
    "teacherLogits": {"weight": 0.5, "topK": 5, "temperature": 2},
}
MASKED = {
    "maskedDiffusion": {"weight": 1, "maskToken": "w60", "maskProbability": 0.15},
    "crossEntropy": {"weight": 0.5},
}
TWO_SOURCES = [("lines", 1), ("text", 2)]
FILES = {"text": "text.txt", "lines": "lines.jsonl", "labelled": "labelled.jsonl"}


def _phases(*objectives: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": f"phase-{number}", "until": f"{100 * number // len(objectives)}%", "objectives": some}
        for number, some in enumerate(objectives, start=1)
    ]


VARIANTS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "MuonClip": {
        "optimizer": OPTIMIZERS["MuonClip"],
        "averaging": {"decay": 0.9},
        "quantization": {"lambdaWarmup": {"steps": BARELY}},
    },
    "Masked": {
        "phases": _phases(MASKED),
        "documents": "Separate",
        "teacher": None,
        "sources": [("lines", 1)],
    },
    "Layers": {
        "phases": _phases(OF_A_LAYER, MEASURED),
        "quantization": {"subLN": "AllProjections", "lambdaWarmup": {"steps": BARELY}},
        "sources": TWO_SOURCES,
        "mixture": {"policy": "Influence", "everySteps": 3, "smoothing": 0.5},
    },
    "Classifier": {
        "phases": _phases({"classification": {"weight": 1}}),
        "classification": {"labels": ["low", "high"]},
        "teacher": None,
        "sources": [("labelled", 1)],
    },
    "Correction": {
        "quantization": {"weights": "Haar", "lowRankCorrection": {"ratio": 0.2}},
        "sources": TWO_SOURCES,
        "mixture": {"policy": "Bandit", "everySteps": 3, "smoothing": 0.5},
    },
}
"""What is trained. Masked: tokens that count are few and spread unevenly. Layers: what attention and layers
put out is compared, at first with no objective on the head. There and with MuonClip, whose steps are as large
however small a gradient is, weights are barely quantised: where rounding carries one of them across a
threshold, its value jumps, and these see it jump. Correction: most of the model is frozen."""

WORKER = f"""
import json, os, sys, traceback
from pathlib import Path
import torch
from bitnet_crds.protocol import Order
from bitnet_trainer.optim import adamw
from bitnet_trainer.outcome import exit_code_of
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.run import train
from in_process import StopsAt

torch.set_num_threads(1)
adamw.EPSILON = {EPSILON}
ranks = Ranks.join(0)
Ranks.join = lambda _: ranks
if ranks.world == 4:
    # As if on two machines, between which sharded ranks send codes.
    os.environ["LOCAL_WORLD_SIZE"] = "2"

class Watched(StopsAt):
    def update(self, **changes):
        super().update(**changes)
        if self.progress.step == 2 and ranks.rank == part["crash"]:
            os._exit({CRASHED})

for part in json.loads(Path(sys.argv[0]).with_suffix(".json").read_text()):
    order = Order.model_validate(part["order"])
    reporter = Watched(order, part["stop_at"])
    try:
        result = train(order, reporter, reporter.stop)
    except Exception as error:
        # As a worker ends: one that lost a rank is not to be taken for the cause.
        traceback.print_exc()
        os._exit(exit_code_of(error))
    if ranks.first and result.evaluation is not None:
        (order.folder / "evaluation.json").write_text(result.evaluation.model_dump_json())
ranks.wait()
os._exit(0)
"""
LAUNCH = "import sys; from bitnet_trainer.__main__ import main; main([sys.argv.pop(1)])"


@dataclass(frozen=True)
class Part:
    """Steps of a run on some ranks."""

    order: Order
    stop_at: int | None = None
    crash: int | None = None
    """The rank that ends after step 2."""

    @property
    def ranks(self) -> int:
        return self.order.spec.workers.count

    @property
    def folder(self) -> Path:
        return self.order.folder

    @property
    def losses(self) -> list[float]:
        records = read_metrics(self.folder / "metrics.jsonl")
        return [math.nan if record.loss is None else record.loss for record in records]

    @property
    def evaluation(self) -> Evaluation:
        return Evaluation.model_validate_json((self.folder / "evaluation.json").read_text())

    @property
    def checkpoint(self) -> Path:
        return max((self.folder / "checkpoints").glob("step-*"))

    def described(self) -> dict[str, Any]:
        order = json.loads(self.order.model_dump_json(by_alias=True))
        return {"order": order, "stop_at": self.stop_at, "crash": self.crash}


class Runs:
    """Runs on one model, and what trains them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        write_inputs(root)
        draw = random.Random(0)

        def words(first: int, end: int) -> str:
            return " ".join(f"w{draw.randrange(first, end)}" for _ in range(1 + draw.randrange(30)))

        records = {
            "lines": [{"text": words(2, 59)} for _ in range(400)],
            "labelled": [
                {"text": words(2, 40) if low else words(20, 59), "label": "low" if low else "high"}
                for low in [True, False] * 55
            ],
        }
        for name, found in records.items():
            (root / FILES[name]).write_text("".join(json.dumps(record) + "\n" for record in found))

    def part(
        self, ranks: int, parallelism: str, variant: str, micro: int, name: str = "", **more: Any
    ) -> Part:
        """A run of a variant on ranks that take `micro` sequences at once."""
        changes = copy.deepcopy(VARIANTS[variant])
        document = run_document(self.root, name or f"{variant}-{parallelism}-{ranks}".lower(), STEPS)
        spec = document["spec"]
        spec["optimizer"] = changes.get("optimizer", OPTIMIZERS["AdamW"])
        spec["quantization"] |= changes.get("quantization", {})
        spec["phases"] = changes.get("phases", spec["phases"])
        spec["classification"] = changes.get("classification")
        spec["averaging"] = changes.get("averaging")
        spec["data"]["sources"] = [
            {"name": source, "uri": f"file://{self.root}/{FILES[source]}", "weight": weight}
            for source, weight in changes.get("sources", [("text", 1)])
        ]
        spec["data"] |= {"documents": changes.get("documents", "Joined"), "heldOut": "6%"}
        spec["data"] |= {"mixture": changes.get("mixture", {"policy": "Static"})}
        if "teacher" in changes:
            del spec["teacher"]
        spec["workers"] = {
            "count": ranks,
            "gpusPerWorker": 0,
            "microBatchSize": micro,
            "parallelism": parallelism,
        }
        stock = variant != "Correction"
        spec["export"] = {"formats": ["HuggingFace", "Packed"] if stock else ["Packed"]}
        spec["checkpoint"] |= {"everySteps": STEPS, "inferenceWeights": True}
        run = parse_run(document)
        order = Order(namespace="ranks", name=run.metadata.name, job="a", spec=run.spec, plan=plan(run.spec))
        return Part(order, **more)

    def train_alone(self, part: Part, patch: pytest.MonkeyPatch) -> None:
        """Trains a part in this process."""
        patch.setattr(adamw, "EPSILON", EPSILON)
        reporter = StopsAt(part.order, part.stop_at)
        result = train_in_process(part.order, patch, reporter, reporter.stop)
        if result.evaluation is not None:
            (part.folder / "evaluation.json").write_text(result.evaluation.model_dump_json())

    def train(self, *parts: Part) -> TerminationReport:
        """Trains parts of as many ranks one after another; gives the launcher's last word."""
        worker = self.root / f"worker-{parts[0].ranks}.py"
        worker.write_text(WORKER)
        worker.with_suffix(".json").write_text(json.dumps([part.described() for part in parts]))
        order = worker.with_suffix(".order")
        order.write_text(parts[0].order.model_dump_json(by_alias=True))
        done = subprocess.run(
            [sys.executable, "-c", LAUNCH, str(worker), "--order", str(order)],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(sys.path),
                "BITNET_TERMINATION_LOG": str(worker.with_suffix(".word")),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        print(done.stdout)
        word = TerminationReport.model_validate_json(worker.with_suffix(".word").read_text())
        assert done.returncode == word.exit_code
        return word
