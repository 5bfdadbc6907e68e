"""The contract's own example of a run: every key of it is taken, and it is planned as it reads."""

import yaml

from bitnet_crds import parse_run, plan

EXAMPLE = """
apiVersion: bitnet.training/v1alpha1
kind: BitNetRun
metadata: {name: qwen3-06b}
spec:
  model: {from: hf://Qwen/Qwen3-0.6B, revision: main}
  quantization:
    weights: AbsMean
    lambdaWarmup: {steps: 1000, curve: Linear}
    subLN: None
    lowRankCorrection: null
  data:
    sequenceLength: 512
    sources: [{name: fineweb-edu, uri: hf://HuggingFaceFW/fineweb-edu, weight: 0.35}]
    mixture: {policy: Static}
  budget: {tokens: 10G, globalBatchSize: 512}
  optimizer:
    name: MuonClip
    muonLearningRate: 0.005
    adamLearningRate: 1e-4
    clippingThreshold: 10
    clippingAlpha: 0.5
  schedule: {warmupSteps: 1000, decayFraction: 0.2}
  phases:
    - {name: warmup,  until: 10%,  objectives: {crossEntropy: {weight: 0.5}, maskedDiffusion: {weight: 0.5}}}
    - {name: main,    until: 90%,  objectives: {crossEntropy: {weight: 1.0}, maskedDiffusion: {weight: 0.5}}}
    - name: distill
      until: 100%
      objectives: {crossEntropy: {weight: 0.5}, teacherLogits: {weight: 5, topK: 100, temperature: 5}}
  teacher: {from: hf://Qwen/Qwen3-0.6B, batchSizeFactor: 0.5, resize: InPlace}
  workers: {count: 2, gpusPerWorker: 1, microBatchSize: 32, template: {}}
  checkpoint: {uri: gs://bucket/runs, everySteps: 200, keep: 3}
  health:
    nonFinite: {skipSteps: 3, rollbacks: 3, learningRateFactor: 0.5}
    plateau: {windowTokens: 50M, minImprovement: 0.5%, action: Alert}
    stallSeconds: 600
  retries: 6
  tracking: {wandb: {project: bitnet, secret: wandb}}
  export: {formats: [HuggingFace, GGUF]}
  suspend: false
"""


def test_the_contracts_example_is_planned() -> None:
    planned = plan(parse_run(yaml.safe_load(EXAMPLE)).spec)
    assert planned.total_steps == 10**10 // (512 * 512)
    assert planned.teacher_start == planned.phases[1].end_step == planned.total_steps * 9 // 10
    shapes = [
        (phase.shape.workers, phase.shape.micro_batch_size, phase.shape.accumulation)
        for phase in planned.phases
    ]
    assert shapes == [(2, 32, 8), (2, 32, 8), (2, 16, 16)]
