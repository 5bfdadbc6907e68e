"""What random kills cost a run: its launcher and ranks get SIGKILL at random moments, again and again.

A tiny model is trained with all that a run has to remember (optimiser, averages, dropout, measured shares and
weights, a teacher, a transition), once without and once with kills. The two must end in the same bits.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))

from bitnet_crds import Order, parse_run, plan
from bitnet_crds.protocol import MachineProgress
from bitnet_trainer.checkpoint.address import open_store
from bitnet_trainer.report import StepRecord, read_metrics
from tiny import run_document, write_inputs

STEPS, EVERY_STEPS = 800, 10
LONGEST_LIFE = 3.0
"""Seconds after its first step within which a process is killed."""


@dataclass
class Kills:
    """What each kill cost."""

    retrained: list[int] = field(default_factory=list)
    """Steps since the last checkpoint, trained once more."""
    seconds: list[float] = field(default_factory=list)
    """From the start of the next process to its first step."""


def order(root: Path, name: str, workers: int) -> Order:
    """A run with everything that has a state."""
    document = run_document(root, name, STEPS)
    spec = document["spec"]
    spec["seed"] = 7
    spec["quantization"] = {"lambdaWarmup": {"steps": STEPS // 2, "curve": "Cosine"}}
    spec["averaging"] = {"decay": 0.99}
    spec["optimizer"] = {"name": "MuonClip", "muonLearningRate": 0.01, "adamLearningRate": 5e-3}
    spec["data"]["sources"].append({"name": "again", "uri": f"file://{root}/text.txt", "weight": 2})
    spec["data"]["mixture"] = {"policy": "Influence", "everySteps": 25}
    distilled = {
        "crossEntropy": {"weight": 1},
        "teacherLogits": {"weight": 0.5, "topK": 5},
        "hiddenStates": {"weight": 0.3, "weighting": "GradientRatio"},
    }
    masked = {"crossEntropy": {"weight": 1}, "maskedDiffusion": {"weight": 0.5, "maskToken": "w60"}}
    spec["phases"] = [
        {"name": "masked", "until": "40%", "objectives": masked},
        {
            "name": "distilled",
            "until": "100%",
            "objectives": distilled,
            "transition": {"steps": STEPS // 3},
        },
    ]
    spec["workers"] = {"count": workers, "gpusPerWorker": 0, "microBatchSize": 8 // workers}
    spec["checkpoint"]["everySteps"] = EVERY_STEPS
    spec["export"] = {"formats": ["Packed"]}
    run = parse_run(document)
    return Order(
        namespace="default",
        name=name,
        job=f"{name}-0",
        spec=run.spec,
        plan=plan(run.spec),
        scratch=f"{root}/scratch",
    )


def launch(root: Path, run: Order) -> "subprocess.Popen[bytes]":
    """Starts the launcher as a pod does, in a process group of its own."""
    file = root / f"{run.name}.json"
    file.write_text(run.model_dump_json(by_alias=True))
    with (root / f"{run.name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "bitnet_trainer", "--order", str(file)],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "BITNET_HOST": "127.0.0.1",
                "BITNET_PORT": "0",
                "BITNET_TERMINATION_LOG": str(root / "last-word"),
            },
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def kill(launcher: "subprocess.Popen[bytes]") -> None:
    """SIGKILL to the launcher and its ranks, as a lost node has it."""
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    launcher.kill()
    launcher.wait()


def last_step(log: Path) -> int:
    """Of the metrics' whole lines."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def newest(run: Order) -> int:
    """Step of the newest committed checkpoint, 0 where there is none."""
    return next((committed.step for committed in open_store(run).committed()), 0)


def lived(root: Path, run: Order, kills: int, draw: random.Random) -> Kills:
    """Trains to the end, through that many kills."""
    log, cost = run.folder / "metrics.jsonl", Kills()
    for _ in range(kills):
        committed = newest(run)
        before, begun = log.stat().st_mtime_ns if log.exists() else 0, time.monotonic()
        launcher = launch(root, run)
        while last_step(log) <= committed or log.stat().st_mtime_ns == before:
            if launcher.poll() is not None:
                raise SystemExit(f"ended by itself:\n{(root / f'{run.name}.log').read_text()[-3000:]}")
            time.sleep(0.01)
        cost.seconds.append(time.monotonic() - begun)
        time.sleep(draw.uniform(0, LONGEST_LIFE))
        if launcher.poll() is not None:
            raise SystemExit("the run was at its end before it was killed often enough: raise STEPS")
        kill(launcher)
        cost.retrained.append(last_step(log) - newest(run))
    launcher = launch(root, run)
    if launcher.wait() != 0:
        raise SystemExit((root / f"{run.name}.log").read_text()[-3000:])
    return cost


def tensors(root: Path, run: Order) -> dict[str, torch.Tensor]:
    """All that the run's last checkpoint holds, by path."""
    store = open_store(run)
    dcp_to_torch_save(store.folder(store.committed()[0]), root / "whole.pt")
    found: dict[str, torch.Tensor] = {}

    def walk(path: str, part: object) -> None:
        if isinstance(part, dict):
            for key, value in part.items():
                walk(f"{path}/{key}", value)
        elif isinstance(part, torch.Tensor):
            found[path] = part

    walk("", torch.load(root / "whole.pt", weights_only=True))
    return found


def bits_apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Bits that differ, and bits compared."""
    if ours.keys() != theirs.keys():
        raise SystemExit(f"other tensors: {sorted(ours.keys() ^ theirs.keys())}")
    apart = compared = 0
    for name, tensor in ours.items():
        a, b = (each.contiguous().reshape(-1).view(torch.uint8) for each in (tensor, theirs[name]))
        apart += sum(int(byte).bit_count() for byte in (a ^ b)[a != b])
        compared += 8 * a.numel()
    return apart, compared


def figures(run: Order) -> list[StepRecord]:
    """Of each step, less speed and memory, which are others each time."""
    others = {"tokens_per_second": None, "machine": MachineProgress()}
    return [record.model_copy(update=others) for record in read_metrics(run.folder / "metrics.jsonl")]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1, choices=(1, 2, 4))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_inputs(root)
        config = root / "model" / "config.json"
        config.write_text(config.read_text().replace('"attention_dropout": 0.0', '"attention_dropout": 0.1'))
        whole, killed = order(root, "whole", options.workers), order(root, "killed", options.workers)
        lived(root, whole, 0, random.Random())
        cost = lived(root, killed, options.kills, random.Random(options.seed))
        expected, found = figures(whole), figures(killed)
        steps = {record.step: record for record in found}
        lost = sum(steps.get(record.step) != record for record in expected) + len(found) - len(steps)
        apart, compared = bits_apart(tensors(root, whole), tensors(root, killed))

    print(f"{STEPS} steps, a checkpoint every {EVERY_STEPS}, {options.workers} ranks, {options.kills} kills")
    print(f"steps lost, doubled or with other figures   {lost}")
    print(f"bits changed, of {compared:,} in the checkpoint   {apart}")
    print(f"steps trained again after a kill            {statistics.median(cost.retrained):g} (median)")
    print(f"seconds from start to first step            {statistics.median(cost.seconds):.1f} (median)")


if __name__ == "__main__":
    main()
