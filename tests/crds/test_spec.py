"""Reading a run: what is right is read, and each thing wrong names field, value and mend."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
import yaml

from bitnet_crds import BitNetRun, InvalidRun, Problem, parse_run, plan
from bitnet_crds.objectives import Objective
from bitnet_crds.record import Record
from bitnet_crds.spec import BitNetRunSpec
from bitnet_crds.yaml_text import to_yaml
from written_runs import RIGHT
from written_runs import changed as written
from wrong_runs import WRONG as DISAGREEING
from wrong_runs import Wrong

WRONG: list[tuple[str, Any, str, str, str]] = [
    # path of the change, value, field blamed, words in what, words in fix
    ("metadata.name", "Qwen3_06B", "metadata.name", "'Qwen3_06B'", "lower-case letters"),
    ("metadata.name", "3b", "metadata.name", "'3b'", "a letter first"),
    ("metadata.name", "q" * 41, "metadata.name", "q" * 41, "at most 40"),
    ("apiVersion", "bitnet.training/v1", "apiVersion", "'bitnet.training/v1'", "bitnet.training/v1alpha1"),
    ("spec.budget", ..., "spec.budget", "missing", "kubectl explain bnr.spec.budget"),
    ("spec.budget.tokens", "10X", "spec.budget.tokens", "'10X'", "10G"),
    ("spec.budget.tokens", "2E", "spec.budget.tokens", "'2E'", "10G"),
    (
        "spec.budget.globalBatchSize",
        0,
        "spec.budget.globalBatchSize",
        "0 found",
        "greater than or equal to 1",
    ),
    ("spec.model.from", "s3://a/b", "spec.model.from", "'s3://a/b'", "hf://organisation/name"),
    ("spec.model.from", "hf://qwen", "spec.model.from", "'hf://qwen'", "hf://organisation/name"),
    ("spec.model.from", "file:///a/../b", "spec.model.from", "'file:///a/../b'", "file:///absolute/path"),
    (
        "spec.checkpoint.uri",
        "file:///" + "r" * 1024,
        "spec.checkpoint.uri",
        "1032 characters",
        "at most 1024",
    ),
    ("spec.model.from", "file:///models/q", "spec.model.revision", "'main'", "hf:// address"),
    ("spec.data.sources.0.uri", "s3://a/b", "spec.data.sources[0].uri", "'s3://a/b'", "pvc://claim/path"),
    ("spec.data.sources.1.name", "web", "spec.data.sources", "'web'", "name of its own"),
    ("spec.data.sources", [], "spec.data.sources", "0 items found", "at least 1"),
    ("spec.classification", {"labels": ["a"]}, "spec.classification.labels", "1 item found", "at least 2"),
    (
        "spec.classification",
        {"labels": ["a", True]},
        "spec.classification.labels[1]",
        "True found",
        "valid string",
    ),
    ("spec.phases.0.mixture", 5, "spec.phases[0].mixture", "5 found", "a block of keys"),
    ("spec.phases.0.mixture", {"web": -1}, "spec.phases[0].mixture.web", "-1 found", "equal to 0"),
    (
        "spec.phases.2.objectives",
        {"hiddenStates": {"weight": 1, "layerWeights": [-1]}},
        "spec.phases[2].objectives.hiddenStates.layerWeights[0]",
        "-1 found",
        "equal to 0",
    ),
    (
        "spec.phases.2.objectives",
        {"hiddenStates": {"weight": 1, "layerWeights": [1] * 1025}},
        "spec.phases[2].objectives.hiddenStates.layerWeights",
        "1025 items found",
        "at most 1024",
    ),
    (
        "spec.phases.0.objectives.crossEntropy.weight",
        "auto",
        "spec.phases[0].objectives.crossEntropy.weight",
        "'auto' is none",
        "Write one, such as 1",
    ),
    ("spec.data.heldOut", "0%", "spec.data.heldOut", "0%", "more than 0%"),
    ("spec.data.corruptShare", "0.1", "spec.data.corruptShare", "0.1", "Write one such as 90%"),
    (
        "spec.data",
        None,
        "spec.data",
        "None",
        "corruptShare, documents, heldOut, mixture, sequenceLength, sources",
    ),
    ("spec.optimizer.adamLearningRate", 0, "spec.optimizer.adamLearningRate", "0 found", "greater than 0"),
    ("spec.optimizer.adamLearningRate", float("nan"), "spec.optimizer.adamLearningRate", "nan", "finite"),
    ("spec.phases", {"a": 1}, "spec.phases", "block", "a list"),
    ("spec.phases.0.until", "90%", "spec.phases", "'main' ends at 90% but begins at 90%", "Order the phases"),
    ("spec.phases.0.until", "0%", "spec.phases", "'warmup' ends at 0%", "Order the phases"),
    ("spec.phases.0.until", "0.1", "spec.phases[0].until", "'0.1'", "90%"),
    ("spec.phases.2.until", "99.5%", "spec.phases", "'distill', ends at 99.5%", "until: 100%"),
    ("spec.phases.1.name", "warmup", "spec.phases", "'warmup'", "name of its own"),
    ("spec.phases.0.objectives", {}, "spec.phases[0].objectives", "weight above 0", "crossEntropy"),
    (
        "spec.phases.0.objectives.crossEntropy.weight",
        0,
        "spec.phases[0].objectives",
        "no objective has a weight above 0",
        "crossEntropy",
    ),
    ("spec.teacher", ..., "spec.teacher", "'distill'", "Add spec.teacher"),
    ("spec.teacher.batchSizeFactor", 2, "spec.teacher.batchSizeFactor", "2 found", "less than or equal to 1"),
    (
        "spec.workers.template",
        {"spec": {"initContainers": [{}, {"env": [{"name": "A"}, {"name": "HF_TOKEN", "value": "hf_abc"}]}]}},
        "spec.workers.template.spec.initContainers[1].env[1].value",
        "HF_TOKEN is a secret by its name",
        "valueFrom: {secretKeyRef: {name: my-secret, key: HF_TOKEN}}`",
    ),
    ("spec.workers.count", "two", "spec.workers.count", "'two'", "valid integer"),
    ("metadata.namespace", "../team", "metadata.namespace", "'../team'", "lower-case letters"),
    ("spec.model.from", "x" * 3000, "spec.model.from", f"'{'x' * 100}", "hf://organisation/name"),
    (
        "spec.quantization.lambdaWarmup.curve",
        "Sine",
        "spec.quantization.lambdaWarmup.curve",
        "'Sine'",
        "'Cosine'",
    ),
    ("spec.export.formats", ["ONNX"], "spec.export.formats[0]", "'ONNX'", "'HuggingFace'"),
]


@pytest.mark.parametrize(("path", "value", "field", "what", "fix"), WRONG)
def test_each_error_names_field_value_and_mend(
    changed: Any, path: str, value: Any, field: str, what: str, fix: str
) -> None:
    problem = only_problem(changed(path, value))
    assert problem.field == field
    assert what in problem.what
    assert fix in problem.fix
    assert str(problem).startswith(f"{field}: ")
    assert len(str(problem)) < 1024, "the mend comes last, and a condition would cut it off"


def test_a_teacher_that_no_phase_uses_is_an_error(changed: Any) -> None:
    """Trap 1: a key that does nothing may not exist."""
    problem = only_problem(changed("spec.phases.2.objectives.teacherLogits.weight", 0))
    assert problem.field == "spec.teacher"
    assert "'hf://Qwen/Qwen3-0.6B' would never be used" in problem.what
    assert "remove spec.teacher" in problem.fix


@pytest.mark.parametrize(
    ("block", "key", "nearest"),
    [
        ("spec", "optimiser", "optimizer"),
        ("spec.budget", "globalBatch", "globalBatchSize"),
        ("spec.budget", "global_batch_size", "globalBatchSize"),
        ("spec.phases.1.objectives", "crossEntropyLoss", "crossEntropy"),
        ("spec.phases.2.objectives.teacherLogits", "temprature", "temperature"),
        ("spec.teacher", "batchSizefactor", "batchSizeFactor"),
        ("spec.data.sources.0", "url", "uri"),
        ("spec.health.nonFinite", "skipStep", "skipSteps"),
        ("spec.checkpoint", "everyStep", "everySteps"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(
    changed: Any, block: str, key: str, nearest: str
) -> None:
    """Trap 1: no key silently does nothing."""
    problem = only_problem(changed(f"{block}.{key}", 1))
    assert problem.field.endswith(f".{key}")
    assert (problem.what, problem.fix) == ("no such key", f"Did you mean `{nearest}`?")


def test_an_unknown_key_that_is_as_near_to_several_names_each(changed: Any) -> None:
    """With AdamW, which the run has, `muonLearningRate` alone would be refused in its turn."""
    problem = only_problem(changed("spec.optimizer.learningRate", 1e-3))
    assert problem.fix == "Did you mean `adamLearningRate` or `muonLearningRate`?"


def test_an_unknown_key_with_no_near_one_lists_what_is_known(changed: Any) -> None:
    problem = only_problem(changed("spec.workers.quux", 1))
    assert problem.fix == "Known here: backend, count, gpusPerWorker, microBatchSize, parallelism, template"


def test_every_record_of_the_spec_is_strict() -> None:
    """Trap 1, for records to come: one that ignored unknown keys would let a dead key live."""
    for record in spec_records(BitNetRunSpec):
        assert record.model_config["extra"] == "forbid", record.__name__
        assert record.model_config["frozen"], record.__name__


def test_every_problem_is_reported_at_once(changed: Any) -> None:
    document = changed("spec.budget.tokens", "10X")
    document["spec"]["workers"]["count"] = 0
    document["spec"]["modle"] = {}
    with pytest.raises(InvalidRun) as caught:
        parse_run(document)
    assert {problem.field for problem in caught.value.problems} == {
        "spec.budget.tokens",
        "spec.workers.count",
        "spec.modle",
    }
    assert str(caught.value).count("\n") == 2


@pytest.mark.parametrize("document", [None, [], "a run", 5])
def test_what_is_no_document_is_refused(document: Any) -> None:
    assert "apiVersion: bitnet.training/v1alpha1" in only_problem(document).fix


def test_what_kubernetes_adds_is_left_aside(full_run: dict[str, Any]) -> None:
    document = deepcopy(full_run)
    document["metadata"] |= {"resourceVersion": "1", "managedFields": [], "generation": 7, "uid": "u"}
    document["status"] = {"phase": "Running", "of a later version": True}
    assert parse_run(document).metadata.generation == 7


def test_defaults(full_run: dict[str, Any]) -> None:
    document = deepcopy(full_run)
    for key in ("quantization", "optimizer", "schedule", "health", "retries", "export"):
        del document["spec"][key]
    spec = parse_run(document).spec
    assert spec.quantization.lambda_warmup is None
    assert spec.retries == 3
    assert spec.export.formats == ("HuggingFace",)


@pytest.mark.parametrize("changes", RIGHT.values(), ids=RIGHT)
def test_a_run_survives_json_and_yaml(full_run: dict[str, Any], changes: Mapping[str, Any]) -> None:
    run = parse_run(written(full_run, changes))
    assert BitNetRun.model_validate_json(run.model_dump_json(by_alias=True)) == run
    for document in (
        run.model_dump(mode="json", by_alias=True),
        run.model_dump(mode="json", by_alias=True, exclude_none=True),
    ):
        assert parse_run(document) == parse_run(yaml.safe_load(to_yaml(document))) == run


@pytest.mark.parametrize("changes", RIGHT.values(), ids=RIGHT)
def test_a_right_run_has_a_plan(full_run: dict[str, Any], changes: Mapping[str, Any]) -> None:
    spec = parse_run(written(full_run, changes)).spec
    assert plan(spec).total_steps > 0


@pytest.mark.parametrize("wrong", DISAGREEING.values(), ids=DISAGREEING)
def test_parts_that_disagree_are_an_error_with_field_and_mend(full_run: dict[str, Any], wrong: Wrong) -> None:
    problem = only_problem(written(full_run, wrong.changes))
    assert problem.field == wrong.field
    assert wrong.what in problem.what
    assert wrong.fix in problem.fix


RATIO = {"weight": 0.1, "weighting": "GradientRatio"}


@pytest.mark.parametrize(
    ("before", "own", "steps", "refused"),
    [
        ({"weight": 5}, RATIO, 9, True),
        (RATIO, {"weight": 0}, 9, True),  # it fades out by this phase's settings
        ({"weight": 0}, RATIO, 9, False),
        ({"weight": 5}, RATIO, 1, False),  # nothing blends in a single step
        (RATIO, RATIO, 9, False),
    ],
)
def test_a_weight_does_not_change_its_meaning_while_it_blends(
    full_run: dict[str, Any], before: Any, own: Any, steps: int, refused: bool
) -> None:
    """5 as a factor half blended into 0.1 of a gradient would be 2.5 times crossEntropy's gradient."""
    changes = {
        "spec.phases.1.objectives.hiddenStates": before,
        "spec.phases.2.objectives.hiddenStates": own,
        "spec.phases.2.transition": {"steps": steps},
    }
    document = written(full_run, changes)
    if not refused:
        parse_run(document)
        return
    problem = only_problem(document)
    assert problem.field == "spec.phases[2].objectives.hiddenStates.weighting"
    assert f"{before.get('weighting', 'Fixed')} in phase 'main'" in problem.what
    assert "the same weighting in both" in problem.fix


def test_every_disagreement_is_reported_at_once(full_run: dict[str, Any]) -> None:
    changes = {"spec.quantization.weights": "Haar", "spec.phases.0.transition": {"steps": 5}}
    with pytest.raises(InvalidRun) as caught:
        parse_run(written(full_run, changes))
    assert [problem.field for problem in caught.value.problems] == [
        "spec.phases[0].transition",
        "spec.export.formats",
    ]


def test_settings_of_what_fades_out_are_those_of_the_phase_before(full_run: dict[str, Any]) -> None:
    """Unless the phase names the objective itself; and only while there is a step with some of its weight."""
    before = {"teacherLogits": {"weight": 1, "topK": 7}, "maskedDiffusion": {"weight": 1}}
    own = {"crossEntropy": {"weight": 1}, "maskedDiffusion": {"weight": 0, "maskProbability": 0.2}}
    changes = {"spec.phases.1.objectives": before, "spec.phases.2.objectives": own}

    def in_the_last_phase(steps: int) -> dict[str, Objective]:
        transition = {"spec.phases.2.transition": {"steps": steps}}
        return parse_run(written(full_run, changes | transition)).spec.objectives_in(2)

    found = in_the_last_phase(2)
    assert set(found) == {"crossEntropy", "teacherLogits", "maskedDiffusion"}
    assert found["teacherLogits"].model_dump()["top_k"] == 7
    assert found["maskedDiffusion"].model_dump()["mask_probability"] == 0.2
    assert set(in_the_last_phase(1)) == {"crossEntropy"}


def only_problem(document: Any) -> Problem:
    """The one problem that the document has."""
    with pytest.raises(InvalidRun) as caught:
        parse_run(document)
    (problem,) = caught.value.problems
    return problem


def spec_records(record: type[Record]) -> set[type[Record]]:
    """Every record below `record`."""
    found: set[type[Record]] = {record}
    pending: list[Any] = [info.annotation for info in record.model_fields.values()]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, Record):
            if annotation not in found:
                found |= spec_records(annotation)
        else:
            pending += getattr(annotation, "__args__", ())
    return found
