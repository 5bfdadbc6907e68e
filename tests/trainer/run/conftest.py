"""Tiny runs, trained whole: in this process, or by the launcher as the operator would start it."""

import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bitnet_crds.locations import parse_location
from bitnet_crds.plan import plan
from bitnet_crds.protocol import MachineProgress, Order, Progress, TerminationReport
from bitnet_crds.spec import BitNetRunSpec
from bitnet_trainer.checkpoint.address import open_store
from bitnet_trainer.data import SourceText, open_corpus
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.objectives.token_loss import TokenLoss
from bitnet_trainer.report import Reporter, StepRecord, read_metrics
from bitnet_trainer.run import Result, train
from bitnet_trainer.stop import StopRequest
from ports import free_port

SEQUENCE, GLOBAL_BATCH = 16, 8


LAUNCH = "import sys; from bitnet_trainer.__main__ import main; main([sys.argv.pop(1)])"


@dataclass
class TinyRun:
    """A model, a teacher and text in a folder, and the order that trains on them."""

    root: Path
    order: Order

    @property
    def folder(self) -> Path:
        return self.order.folder

    @property
    def order_file(self) -> Path:
        path = self.root / f"{self.order.name}.json"
        path.write_text(self.order.model_dump_json(by_alias=True))
        return path

    def metrics(self) -> list[StepRecord]:
        return read_metrics(self.folder / "metrics.jsonl")

    def figures(self) -> list[StepRecord]:
        """The metrics less speed and memory, which are others each time."""
        others = {"tokens_per_second": None, "machine": MachineProgress()}
        return [record.model_copy(update=others) for record in self.metrics()]

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir())

    def held_out(self) -> torch.Tensor:
        """The sequences (N, S) that perplexity is measured on."""
        data = self.order.spec.data
        corpus = open_corpus(
            [SourceText(s.name, parse_location(s.uri).path, s.weight) for s in data.sources],
            AutoTokenizer.from_pretrained(self.root / "model"),
            sequence_length=data.sequence_length,
            held_out=data.held_out,
            seed=self.order.spec.seed,
            cache=self.root / "again",
        )
        return corpus.held_out().input_ids

    def environment(self, **more: str) -> dict[str, str]:
        """What a launcher of this run is given; its last word goes to `last_word`."""
        return {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "BITNET_HOST": "127.0.0.1",
            "BITNET_PORT": str(free_port()),
            "BITNET_TERMINATION_LOG": str(self.root / "termination-log"),
            **more,
        }

    def last_word(self, name: str = "termination-log") -> TerminationReport:
        return TerminationReport.model_validate_json((self.root / name).read_text())

    def launch(
        self, worker: Path | None = None, order: Path | None = None, **more: str
    ) -> "subprocess.Popen[str]":
        """Starts the launcher; `worker` is a script to run as each rank in place of the trainer."""
        start = ["-m", "bitnet_trainer"] if worker is None else ["-c", LAUNCH, str(worker)]
        return subprocess.Popen(
            [sys.executable, *start, "--order", str(order or self.order_file)],
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def launch_node(
        self, rank: int, rendezvous: int, nodes: int = 2, worker: Path | None = None, **more: Any
    ) -> "subprocess.Popen[str]":
        """Starts the launcher of one node of several, as PyTorchJob's pods do; they meet at a port here.
        Its last word goes to `node-<rank>`."""
        return self.launch(
            worker,
            PET_NNODES=str(nodes),
            PET_NODE_RANK=str(rank),
            PET_MASTER_ADDR="127.0.0.1",
            PET_MASTER_PORT=str(rendezvous),
            BITNET_TERMINATION_LOG=str(self.root / f"node-{rank}"),
            **more,
        )

    def wait_for_step(self, step: int, process: "subprocess.Popen[str]", seconds: float = 180) -> None:
        """Returns as soon as metrics.jsonl has the step."""
        log = self.folder / "metrics.jsonl"
        deadline = time.monotonic() + seconds
        while not log.exists() or log.read_bytes().count(b"\n") < step:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"step {step} was not reached in {seconds} s"
            time.sleep(0.005)


MakeRun = Callable[..., TinyRun]


@pytest.fixture
def make_run(tmp_path: Path, make_model: Callable[..., Any], tokenizer: PreTrainedTokenizerFast) -> MakeRun:
    """Makes a run such as `make_run(steps=12, workers=2)`; `changes` are merged over the top of its spec."""
    make_model(initializer_range=0.02).save_pretrained(tmp_path / "model")
    make_model(seed=1).save_pretrained(tmp_path / "teacher")
    for name in ("model", "teacher"):
        tokenizer.save_pretrained(tmp_path / name)
    draw = random.Random(0)
    (tmp_path / "counting.txt").write_text(
        " ".join(f"w{2 + (7 * place + draw.randrange(2)) % 58}" for place in range(3000))
    )
    lines = (" ".join(f"w{2 + (first + n) % 20}" for n in range(30)) for first in range(60))
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))

    def make(
        steps: int = 12,
        workers: int = 1,
        every_steps: int = 5,
        gpus: int = 0,
        micro: int | str = 4,
        parallelism: str = "DDP",
        name: str = "tiny",
        **changes: Any,
    ) -> TinyRun:
        spec = BitNetRunSpec.model_validate(
            {
                "model": {"from": f"file://{tmp_path}/model"},
                "quantization": {"lambdaWarmup": {"steps": 4}},
                "data": {
                    "sequenceLength": SEQUENCE,
                    "sources": [
                        {"name": "counting", "uri": f"file://{tmp_path}/counting.txt", "weight": 2},
                        {"name": "lines", "uri": f"file://{tmp_path}/lines.jsonl"},
                    ],
                },
                "budget": {"tokens": steps * GLOBAL_BATCH * SEQUENCE, "globalBatchSize": GLOBAL_BATCH},
                "optimizer": {"adamLearningRate": 5e-3, "weightDecay": 0.01},
                "schedule": {"warmupSteps": 3},
                "phases": [
                    {"name": "warmup", "until": "25%", "objectives": {"crossEntropy": {"weight": 1}}},
                    {"name": "main", "until": "75%", "objectives": {"crossEntropy": {"weight": 1}}},
                    {
                        "name": "distill",
                        "until": "100%",
                        "objectives": {
                            "crossEntropy": {"weight": 0.5},
                            "teacherLogits": {"weight": 1, "temperature": 2},
                        },
                    },
                ],
                "teacher": {"from": f"file://{tmp_path}/teacher"},
                "workers": {
                    "count": workers,
                    "gpusPerWorker": gpus,
                    "microBatchSize": micro,
                    "parallelism": parallelism,
                },
                "checkpoint": {"uri": f"file://{tmp_path}/runs", "everySteps": every_steps, "keep": 2},
                **changes,
            }
        )
        return TinyRun(
            tmp_path,
            Order(
                namespace="default",
                name=name,
                job=f"{name}-0",
                spec=spec,
                plan=plan(spec),
                scratch=f"{tmp_path}/scratch",
            ),
        )

    return make


class Watched(Reporter):
    """A reporter that remembers every progress it held, and asks to stop at a step."""

    def __init__(self, order: Order, stop: StopRequest, stop_at: int | None) -> None:
        super().__init__(Progress(total_steps=order.plan.total_steps, phase=order.plan.phases[0].name))
        self.seen: list[Progress] = []
        self._stop, self._stop_at = stop, stop_at

    def update(self, **changes: object) -> None:
        super().update(**changes)
        self.seen.append(self.progress)
        if self.progress.step == self._stop_at:
            self._stop.requested = True


TrainHere = Callable[..., tuple[Result, Watched]]


@pytest.fixture
def train_here(monkeypatch: pytest.MonkeyPatch) -> TrainHere:
    """Trains a run in this process, as its only rank; `stop_at` asks it to stop after that step."""

    def run(tiny: TinyRun, stop_at: int | None = None) -> tuple[Result, Watched]:
        for name, value in {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }.items():
            monkeypatch.setenv(name, value)
        stop = StopRequest()
        reporter = Watched(tiny.order, stop, stop_at)
        try:
            return train(tiny.order, reporter, stop), reporter
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    return run


def trained_weights(run: TinyRun) -> dict[str, torch.Tensor]:
    """Model and optimiser of a run's newest checkpoint, by name."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    store = open_store(run.order)
    newest = store.folder(store.committed()[0])
    whole = run.root / f"{run.order.name}.pt"
    dcp_to_torch_save(newest, whole)
    found: dict[str, torch.Tensor] = {}

    def walk(prefix: str, part: Any) -> None:
        if isinstance(part, dict):
            for key, value in part.items():
                walk(f"{prefix}/{key}", value)
        elif isinstance(part, torch.Tensor):
            found[prefix] = part

    walk("", torch.load(whole, weights_only=True))
    return found


@pytest.fixture
def ended() -> Callable[..., int]:
    """Waits for a launcher and gives its exit code, showing what it printed."""

    def wait(process: "subprocess.Popen[str]", seconds: float = 180) -> int:
        try:
            print(process.communicate(timeout=seconds)[0])
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"still running after {seconds} s:\n{process.communicate()[0]}")
        return process.returncode

    return wait


@pytest.fixture
def weights_of() -> Callable[[TinyRun], dict[str, torch.Tensor]]:
    """Reads a run's newest checkpoint whole."""
    return trained_weights


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[Collection[int]], None]:
    """Makes the cross-entropy NaN in the steps named; a step has two micro batches, the last phase's four."""

    def at(steps: Collection[int]) -> None:
        real, calls = CrossEntropyObjective.__call__, iter(range(10**6))

        def poisoned(self: CrossEntropyObjective, batch: Any) -> TokenLoss:
            loss = real(self, batch)
            step = next(calls) // 2 + 1
            return TokenLoss(loss.total * (math.nan if step in steps else 1.0), loss.tokens)

        monkeypatch.setattr(CrossEntropyObjective, "__call__", poisoned)

    return at
