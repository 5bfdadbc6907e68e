"""Whole runs on CUDA, launched as the operator does: the losses are the CPU's, on one GPU and on two."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


def train(inputs: Path, folder: Path, workers: int, gpus: bool) -> tuple[TerminationReport, list[float]]:
    """Trains in `folder`; gives the last word and the loss of every step."""
    document = run_document(inputs)
    document["spec"]["checkpoint"]["uri"] = f"file://{folder}/runs"
    document["spec"]["workers"] = {"count": workers, "gpusPerWorker": int(gpus), "microBatchSize": 4}
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


@pytest.mark.parametrize("gpus", [1, 2])
def test_gpus_train_as_the_cpu_does(inputs: Path, tmp_path: Path, gpus: int) -> None:
    if torch.cuda.device_count() < gpus:
        pytest.skip(f"{torch.cuda.device_count()} of {gpus} GPUs here")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "gpu").mkdir()
    reference, expected = train(inputs, tmp_path / "cpu", workers=gpus, gpus=False)
    report, losses = train(inputs, tmp_path / "gpu", workers=gpus, gpus=True)
    assert (report.exit_code, report.step) == (0, 12)
    assert losses == pytest.approx(expected, rel=BFLOAT16_TOLERANCE)
    assert report.evaluation is not None
    assert reference.evaluation is not None
    assert float(report.evaluation.perplexity_after) == pytest.approx(
        float(reference.evaluation.perplexity_after), rel=2 * BFLOAT16_TOLERANCE
    )
    print(f"\n{gpus} x {torch.cuda.get_device_name()}: losses {losses[0]:.3f} .. {losses[-1]:.3f}")
