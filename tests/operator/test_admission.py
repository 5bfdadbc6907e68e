"""What is said to whoever creates or changes a run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from bitnet_crds import BitNetRunStatus, InvalidRun, parse_run, plan
from bitnet_operator.admission import Review, review
from bitnet_operator.failing import reject
from bitnet_operator.observation import Observation
from written_runs import changed

Document = dict[str, Any]


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        pytest.param({}, None, id="right"),
        pytest.param(
            {"spec.budget.globalBatchSize": 6},
            "spec.budget.globalBatchSize: ",
            id="a batch that the workers do not divide",
        ),
        pytest.param({"spec.phases.0.until": "1%"}, "spec.phases[0].until: ", id="a phase without a step"),
        pytest.param(
            {"spec.budgett": {}}, "spec.budgett: no such key. Did you mean `budget`?", id="a wrong key"
        ),
        pytest.param({"spec.teacher": ...}, "spec.teacher: ", id="a teacher that is asked and not named"),
        pytest.param(
            {
                "spec.workers.template": {
                    "spec": {
                        "containers": [{"name": "pytorch", "env": [{"name": "HF_TOKEN", "value": "hf_abc"}]}]
                    }
                }
            },
            "spec.workers.template",
            id="a secret that is written out",
        ),
        pytest.param(
            {"spec.workers.template": {"spec": {"containers": [{"name": "pytorch"}, {"image": "x"}]}}},
            "spec.workers.template.spec.containers[1]: an item of `containers` has no `name`",
            id="a container without a name",
        ),
        pytest.param(
            {"spec.phases.0.workers": {"template": {"spec": {"volumes": ["data"]}}}},
            "spec.phases[0].workers.template.spec.volumes[0]: an item of `volumes` is 'data'",
            id="a phase's volume that is no block",
        ),
    ],
)
def test_a_run_is_refused_with_field_and_mend(document: Document, changes: Any, refusal: str | None) -> None:
    answer = review(changed(document, changes))
    if refusal is None:
        assert answer.refusal is None
    else:
        assert answer.refusal is not None
        assert answer.refusal.startswith(refusal)
        assert answer.warnings == ()


def test_every_template_that_cannot_be_merged_has_a_line(document: Document) -> None:
    remove = {"template": {"metadata": {"labels": {"$patch": "remove"}}}}
    answer = review(
        changed(
            document,
            {
                "spec.workers.template": {"spec": {"tolerations": "all", "volumes": [{"name": ["a"]}]}},
                "spec.phases.0.workers": {"template": {"spec": {"nodeSelector": {"pool": "l4"}}}},
                "spec.phases.1.workers": remove,
                "spec.phases.2.workers": remove,
                "spec.teacher.resize": "Rescale",
            },
        )
    )
    assert answer.refusal is not None
    assert [line.partition(":")[0] for line in answer.refusal.splitlines()] == [
        "spec.workers.template.spec.volumes[0].name",
        "spec.phases[1].workers.template.metadata.labels",
        "spec.phases[2].workers.template.metadata.labels",
    ]


def test_every_problem_has_a_line(document: Document) -> None:
    answer = review(changed(document, {"spec.retries": -1, "spec.budget.tokens": "10X"}))
    assert answer.refusal is not None
    assert [line.partition(":")[0] for line in answer.refusal.splitlines()] == [
        "spec.budget.tokens",
        "spec.retries",
    ]


def test_the_words_are_those_of_the_condition_that_a_run_gets_without_the_webhook(document: Document) -> None:
    wrong = changed(document, {"spec.phases.0.until": "1%"})
    with pytest.raises(InvalidRun) as invalid:
        plan(parse_run(wrong).spec)
    decision = reject(
        Observation(wrong, BitNetRunStatus(), ()), invalid.value, datetime(2026, 1, 1, tzinfo=UTC)
    )
    (accepted,) = [each for each in decision.status.conditions if each.type == "Accepted"]
    assert accepted.status == "False"
    assert review(wrong).refusal == accepted.message


def test_what_is_known_against_a_run_is_a_warning_and_no_refusal(document: Document) -> None:
    answer = review(changed(document, {"spec.optimizer": {"adamLearningRate": 1e-4}}))
    assert answer.refusal is None
    (rate,) = [line for line in answer.warnings if line.startswith("spec.optimizer.adamLearningRate: ")]
    assert "Try 0.001 to 0.004" in rate
    assert "(measured on" in rate


def test_a_spec_that_stays_as_it_was_is_taken_whatever_it_says(document: Document) -> None:
    wrong = changed(document, {"spec.phases.0.until": "1%"})
    labelled = changed(wrong, {"metadata.labels": {"team": "a"}})
    assert review(labelled, wrong) == Review()
    assert review(labelled, document).refusal is not None
    assert review(labelled).refusal is not None


def test_a_run_that_is_being_deleted_is_let_go(document: Document) -> None:
    wrong = changed(document, {"spec.phases.0.until": "1%"})
    going = changed(wrong, {"metadata.deletionTimestamp": "2026-01-01T00:00:00Z"})
    assert review(going, document) == Review()
