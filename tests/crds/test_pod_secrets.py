"""Which environment variables of a pod template are secrets that are written out."""

from typing import Any

import pytest

from bitnet_crds import InvalidRun, parse_run
from bitnet_crds.pod_secrets import SECRET_WORDS, written_secrets
from written_runs import changed


def found(*env: Any) -> list[str]:
    template = {"spec": {"containers": [{"name": "pytorch", "env": list(env)}]}}
    return [name for _, name in written_secrets(template)]


@pytest.mark.parametrize("word", sorted(SECRET_WORDS))
def test_a_word_of_the_name_says_so_wherever_it_stands(word: str) -> None:
    for name in (word, f"MY_{word}", f"{word}_2", f"my_{word.lower()}"):
        assert found({"name": name, "value": "abc"}) == [name]
    assert found({"name": f"NO{word}", "value": "abc"}) == []


@pytest.mark.parametrize(
    "item",
    [
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
        {"name": "HF_TOKEN", "value": "$(HUB_TOKEN)"},
        {"name": "HF_TOKEN"},
        {"name": "GOOGLE_APPLICATION_CREDENTIALS", "value": "/var/run/key.json"},
        {"name": "HF_HUB_DISABLE_IMPLICIT_TOKEN", "value": "1"},
        {"name": "TOKENIZERS_PARALLELISM", "value": "not a flag"},
    ],
    ids=lambda item: f"{item['name']}={item.get('value')}",
)
def test_what_holds_no_secret_is_taken(item: dict[str, Any]) -> None:
    assert found(item) == []


def test_a_phases_own_template_is_looked_through_too_and_the_secret_is_not_repeated(full_run: Any) -> None:
    env = [{"name": "db_password", "value": "hunter2"}]
    changes = {
        "spec.teacher.resize": "Rescale",
        "spec.phases.2.workers": {"template": {"spec": {"containers": [{"env": env}]}}},
    }
    with pytest.raises(InvalidRun) as refused:
        parse_run(changed(full_run, changes))
    (problem,) = refused.value.problems
    assert problem.field == "spec.phases[2].workers.template.spec.containers[0].env[0].value"
    assert "secretKeyRef: {name: my-secret, key: db_password}" in problem.fix
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "template", [{}, {"spec": 5}, {"spec": {"containers": {"a": 1}}}, {"spec": {"containers": ["x"]}}]
)
def test_a_template_of_another_form_is_the_api_servers_to_refuse(template: dict[str, Any]) -> None:
    assert list(written_secrets(template)) == []
