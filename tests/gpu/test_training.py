"""Whole runs on CUDA, launched as the operator does: the losses are the CPU's, on one GPU and on two."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bitnet_crds import Order, TerminationReport, parse_run, plan
from tiny import run_document, write_inputs

pytestmark = pytest.mark.gpu

BFLOAT16_TOLERANCE = 0.05
"""Relative; products are bfloat16 on CUDA and float32 on the CPU."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a teacher and text."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


MUONCLIP = {"name": "MuonClip", "muonLearningRate": 0.01, "adamLearningRate": 5e-3, "clippingThreshold": 0.05}
"""The threshold is so low that heads are clipped in every step."""


def train(
    inputs: Path,
    folder: Path,
    workers: int,
    *,
    gpus: bool,
    parallelism: str = "DDP",
    micro: int | str = 4,
    **spec: Any,
) -> tuple[TerminationReport, list[float]]:
    """Trains in `folder`, with `spec` laid over the tiny run's; gives the last word and each step's loss."""
    folder.mkdir()
    document = run_document(inputs)
    document["spec"] |= spec
    document["spec"]["checkpoint"] |= {"uri": f"file://{folder}/runs", "inferenceWeights": True}
    document["spec"]["workers"] = {
        "count": workers,
        "gpusPerWorker": int(gpus),
        "microBatchSize": micro,
        "parallelism": parallelism,
    }
    run = parse_run(document)
    order = Order(namespace="gpu", name="tiny", job="tiny-0", spec=run.spec, plan=plan(run.spec))
    (folder / "order.json").write_text(order.model_dump_json(by_alias=True))
    subprocess.run(
        [sys.executable, "-m", "bitnet_trainer", "--order", folder / "order.json"],
        env={
            **os.environ,
            **({} if gpus else {"CUDA_VISIBLE_DEVICES": ""}),
            "BITNET_HOST": "127.0.0.1",
            "BITNET_TERMINATION_LOG": str(folder / "termination"),
        },
        check=True,
        timeout=240,
    )
    lines = (order.folder / "metrics.jsonl").read_text().splitlines()
    report = TerminationReport.model_validate_json((folder / "termination").read_text())
    return report, [json.loads(line)["loss"] for line in lines]


def needs(gpus: int) -> None:
    if torch.cuda.device_count() < gpus:
        pytest.skip(f"{torch.cuda.device_count()} of {gpus} GPUs here")


@pytest.mark.parametrize(
    ("gpus", "parallelism", "optimizer"),
    [
        (1, "DDP", {}),
        (2, "DDP", {}),
        (2, "FSDP", {}),
        (1, "DDP", MUONCLIP),
        (2, "DDP", MUONCLIP),
        (2, "FSDP", MUONCLIP),
    ],
    ids=lambda value: value.get("name", "AdamW") if isinstance(value, dict) else str(value),
)
def test_gpus_train_as_the_cpu_does(
    inputs: Path, tmp_path: Path, gpus: int, parallelism: str, optimizer: dict[str, Any]
) -> None:
    needs(gpus)
    changes = {"optimizer": optimizer} if optimizer else {}
    # One rank: that many train what one does is tested without a GPU.
    reference, expected = train(inputs, tmp_path / "cpu", workers=1, gpus=False, **changes)
    report, losses = train(
        inputs, tmp_path / "gpu", workers=gpus, gpus=True, parallelism=parallelism, **changes
    )
    assert (report.exit_code, report.step) == (0, 12)
    assert losses == pytest.approx(expected, rel=BFLOAT16_TOLERANCE)
    assert report.evaluation is not None
    assert reference.evaluation is not None
    assert float(report.evaluation.perplexity_after) == pytest.approx(
        float(reference.evaluation.perplexity_after), rel=2 * BFLOAT16_TOLERANCE
    )
    print(f"\n{gpus} x {torch.cuda.get_device_name()}: losses {losses[0]:.3f} .. {losses[-1]:.3f}")


def test_sharded_gpus_train_what_whole_ones_do(inputs: Path, tmp_path: Path) -> None:
    """The products are the same, in the same precision: only sums between ranks are in another order."""
    needs(2)
    whole, sharded = (
        train(inputs, tmp_path / how, workers=2, gpus=True, parallelism=how, optimizer=MUONCLIP)
        for how in ("DDP", "FSDP")
    )
    assert sharded[1] == pytest.approx(whole[1], rel=BFLOAT16_TOLERANCE / 5)
    exported = (
        next((tmp_path / how / "runs").rglob("export/huggingface/config.json")) for how in ("DDP", "FSDP")
    )
    assert len({path.read_text() for path in exported}) == 1


def test_replayed_ranks_train_what_others_do(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro batches a step: gradients of the first are kept until those of the second join them."""
    needs(2)
    losses = []
    for switch in ("0", "1"):
        monkeypatch.setenv("TORCHINDUCTOR_CUDAGRAPHS", switch)
        _, found = train(inputs, tmp_path / switch, workers=2, gpus=True, micro=2)
        losses.append(found)
    # Each run chooses by measuring how its passes are cut up.
    assert losses[1] == pytest.approx(losses[0], rel=BFLOAT16_TOLERANCE / 5)


@pytest.mark.parametrize(("gpus", "parallelism"), [(1, "DDP"), (2, "DDP"), (2, "FSDP")])
def test_auto_finds_that_a_small_run_fits_whole(
    inputs: Path, tmp_path: Path, gpus: int, parallelism: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each phase is tried in its place, the last with its teacher; a rank then has its share in one pass, and
    graphs have room beside it."""
    needs(gpus)
    workers = {"workers": gpus, "gpus": True, "parallelism": parallelism}
    _, expected = train(inputs, tmp_path / "written", **workers)
    capfd.readouterr()
    report, losses = train(inputs, tmp_path / "auto", micro="Auto", **workers)
    said = capfd.readouterr().err
    for phase in ("warmup", "main", "distill"):
        how = "not replayed" if parallelism == "FSDP" else "replayed"
        assert f"layers of phase {phase} are {how}" in said
    assert report.micro_batches == dict.fromkeys(("warmup", "main", "distill"), 8 // gpus)
    assert losses == pytest.approx(expected, rel=BFLOAT16_TOLERANCE / 5)
