"""BitNetRuns that the cluster's tests train, and how they are watched."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from local_cluster import CommandFailed, Kubectl, host_pod_template

Document = dict[str, Any]
TINY_MODEL = "file:///data/tiny"
_KINDS = {"PyTorchJob": "pytorchjobs.kubeflow.org", "Job": "jobs.batch"}


def run_document(name: str, template: Document, *, steps: int, model: str, **changes: Any) -> Document:
    """A run of two workers in three phases, the teacher in the last; `changes` replace parts of its spec, and
    of its workers.

    A step is 4 sequences of 16 tokens, so that a rank has two in a pass, and one with the teacher.
    """
    sequences, length = 4, 16
    return {
        "apiVersion": "bitnet.training/v1alpha1",
        "kind": "BitNetRun",
        "metadata": {"name": name},
        "spec": {
            "model": {"from": model},
            "quantization": {"lambdaWarmup": {"steps": max(1, steps // 3)}},
            "data": {
                "sequenceLength": length,
                # Each pass over it quantises the whole model anew: six sequences tell as much as sixty.
                "heldOut": "0.1%",
                "sources": [{"name": "shakespeare", "uri": "file:///data/text"}],
            },
            "budget": {"tokens": steps * sequences * length, "globalBatchSize": sequences},
            "optimizer": {"adamLearningRate": 0.001},
            "phases": [
                {"name": "warmup", "until": "30%", "objectives": {"crossEntropy": {"weight": 1}}},
                {"name": "main", "until": "60%", "objectives": {"crossEntropy": {"weight": 1}}},
                {
                    "name": "distill",
                    "until": "100%",
                    "objectives": {
                        "crossEntropy": {"weight": 0.5},
                        "teacherLogits": {"weight": 0.5, "temperature": 2},
                    },
                },
            ],
            "teacher": {"from": model},
            "checkpoint": {"uri": "file:///data/runs", "everySteps": 10, "keep": 2},
            **changes,
            "workers": {
                **{"count": 2, "gpusPerWorker": 0, "microBatchSize": 2, "template": template},
                **changes.get("workers", {}),
            },
        },
    }


def pod_template(checkout: Path, data: Path, faults: Mapping[str, str] | None = None) -> Document:
    """Pods that run this checkout's own trainer, `data` of the host being their /data; `faults` are those of
    faults/sitecustomize.py, or other variables."""
    # The environment may be another checkout's.
    env = {"PYTHONPATH": f"{checkout}/crds:{checkout}/trainer:{checkout}/tests/support/faults"}
    env |= faults or {}
    return host_pod_template(checkout, Path(sys.prefix), data, grace_seconds=30, env=env)


def write_tiny_model(gguf: Path, folder: Path) -> None:
    """Writes a small random model with the tokenizer of that one."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def said_of(segments: list[Document]) -> list[tuple[str, str]]:
    """How each segment began and ended."""
    return [(segment["reason"], segment["outcome"]) for segment in segments]


@dataclass
class WatchedRun:
    """A run in the cluster, and what is asked of it."""

    kubectl: Kubectl
    namespace: str
    name: str
    backend: str = "PyTorchJob"

    def status(self) -> Document:
        """Its status; empty while nobody wrote one."""
        status: Document = self._get().get("status", {})
        return status

    def wait_until(self, condition: Callable[[Document], bool], what: str, seconds: float = 300) -> Document:
        """Waits for its status to be so, and returns it. Fails at once where the run has failed meanwhile."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status()
            if condition(status):
                return status
            assert status.get("phase") != "Failed", f"{what}: the run failed\n{json.dumps(status, indent=1)}"
            assert time.monotonic() < deadline, f"{what}: not in {seconds} s\n{json.dumps(status, indent=1)}"
            time.sleep(0.5)

    def goes_on(self, seconds: float = 300) -> Document:
        """Waits for a new step in a second segment."""
        return self.wait_until(
            lambda status: (
                len(status["segments"]) > 1 and status["step"] > status["segments"][-1]["firstStep"]
            ),
            "going on",
            seconds,
        )

    def succeeded(self, seconds: float = 300) -> Document:
        """Waits for its end."""
        return self.wait_until(lambda status: status.get("phase") == "Succeeded", "success", seconds)

    def failed(self, seconds: float = 300) -> Document:
        """Waits for its failure."""
        deadline = time.monotonic() + seconds
        while (status := self.status()).get("phase") != "Failed":
            assert time.monotonic() < deadline, f"no failure in {seconds} s\n{json.dumps(status, indent=1)}"
            time.sleep(0.5)
        return status

    def change(self, **spec: Any) -> None:
        """Edits its spec, as `kubectl patch` does."""
        patch = json.dumps({"spec": spec})
        self.kubectl("patch", "bnr", self.name, "-n", self.namespace, "--type=merge", "-p", patch)

    def jobs(self) -> list[str]:
        """Names of its jobs."""
        return self._children(_KINDS[self.backend])

    def pods(self) -> list[str]:
        """Names of its pods."""
        return self._children("pods")

    def children(self) -> list[str]:
        """All that the cluster holds for it, but for events."""
        others = (self._children(kind) for kind in ("configmaps", "services"))
        return [*self.jobs(), *self.pods(), *chain.from_iterable(others)]

    def pod(self, rank: int) -> str:
        """Name of the newest job's pod of that rank."""
        job = self.status()["segments"][-1]["job"]
        ending = ("-master-0" if rank == 0 else f"-worker-{rank - 1}") if self.backend == "PyTorchJob" else ""
        (name,) = (name for name in self.pods() if name.startswith(f"{job}{ending or f'-{rank}-'}"))
        return name

    def events(self) -> list[Document]:
        """Events on the run, oldest first."""
        found = self.kubectl.get(
            "events", "-n", self.namespace, f"--field-selector=involvedObject.name={self.name}"
        )
        return sorted(found["items"], key=lambda event: str(event["metadata"]["creationTimestamp"]))

    def kill_rank(self, pod: str) -> None:
        """Kills the training process in a pod with SIGKILL, as the kernel does when memory runs out."""
        code = (
            "import os, pathlib, signal\n"
            "for entry in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
            "    mine = entry.parent.name == str(os.getpid())\n"
            "    if not mine and b'bitnet_trainer.worker' in entry.read_bytes():\n"
            "        os.kill(int(entry.parent.name), signal.SIGKILL)\n"
            "        print('killed', entry.parent.name)\n"
        )
        said = self.kubectl("exec", pod, "-n", self.namespace, "--", "python", "-c", code)
        assert "killed" in said, said

    def retried_after_sigkill(self) -> Document:
        """Kills rank 1 after step 10; the run goes on from its checkpoint. Gives the segment that failed."""
        self.wait_until(lambda status: status.get("checkpointStep", 0) >= 10, "second checkpoint")
        self.kill_rank(self.pod(1))
        retried = self.wait_until(lambda status: len(status["segments"]) > 1, "the next segment")
        first: Document = retried["segments"][0]
        second = retried["segments"][-1]
        assert (first["outcome"], first["exitCode"]) == ("Failed", 137)
        job = f"{self.name}-1"
        assert (second["reason"], second["job"], retried["attempts"]) == ("Retry", job, 1)
        assert second["firstStep"] >= 10
        self.wait_until(lambda status: status["step"] > first["lastStep"], "going on")
        self.wait_until(lambda status: status["attempts"] == 0, "a checkpoint, which begins the count anew")
        return first

    def gone(self) -> bool:
        """Whether the cluster has no such run any more."""
        try:
            self._get()
        except CommandFailed as error:
            if "NotFound" in error.stderr:
                return True
            raise
        return False

    def _get(self) -> Document:
        return self.kubectl.get("bnr", self.name, "-n", self.namespace)

    def _children(self, kind: str) -> list[str]:
        selector = f"--selector=bitnet.training/run={self.name}"
        found = self.kubectl.get(kind, "-n", self.namespace, selector)
        return [item["metadata"]["name"] for item in found["items"]]
