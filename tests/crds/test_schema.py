"""The generated definition: up to date, structural, described, and of one mind with the models."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds import schema
from bitnet_crds.cel import Rule
from bitnet_crds.changes import MUTABLE
from bitnet_crds.record import Record
from bitnet_crds.rules import RULES
from bitnet_crds.spec import BitNetRunSpec
from bitnet_crds.yaml_text import to_yaml

Node = dict[str, Any]


@pytest.fixture(scope="module")
def definition() -> Node:
    return schema.custom_resource_definition()


@pytest.fixture(scope="module")
def root(definition: Node) -> Node:
    """The schema of the whole object."""
    (version,) = definition["spec"]["versions"]
    found: Node = version["schema"]["openAPIV3Schema"]
    return found


def nodes(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every schema node with its path, as RULES writes it."""
    yield path, node
    for name, member in node.get("properties", {}).items():
        yield from nodes(member, f"{path}.{name}".lstrip("."))
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from nodes(node[key], f"{path}[]")


def test_the_committed_files_are_up_to_date(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert schema.main(["--check"]) == 0, capsys.readouterr().out
    assert set(schema.generated_files(checkout)) == {
        checkout / "crds/bitnetrun.yaml",
        checkout / "charts/bitnet-operator/templates/crds.yaml",
    }


def test_a_file_out_of_date_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(schema, "_COLUMNS", ())
    assert schema.main(["--check"]) == 1
    shown = capsys.readouterr()
    assert "+      additionalPrinterColumns: []" in shown.out
    assert "Run `make crds`" in shown.err


def test_printed_and_committed_are_the_same_definition(
    checkout: Path, definition: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    assert schema.main(["--print"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == definition
    assert yaml.safe_load((checkout / "crds/bitnetrun.yaml").read_text()) == definition


def test_the_schema_is_structural(root: Node) -> None:
    forbidden = {
        "$ref",
        "$defs",
        "definitions",
        "anyOf",
        "oneOf",
        "allOf",
        "not",
        "const",
        "title",
        "uniqueItems",
    }
    for path, node in nodes(root):
        assert not forbidden & set(node), path
        assert node.get("additionalProperties") is not False, path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert isinstance(node.get("exclusiveMinimum", True), bool), path
        assert set(node.get("required", [])) <= set(node.get("properties", {})), path


def test_every_field_of_the_spec_is_described(root: Node) -> None:
    for path, node in nodes(root["properties"]["spec"], "spec"):
        if not path.endswith("[]"):
            assert node.get("description", "")[-1:] == ".", path


def test_every_field_of_the_spec_is_in_the_schema(root: Node) -> None:
    def aliases(record: type[Record]) -> set[str]:
        return {info.alias or name for name, info in record.model_fields.items()}

    assert set(root["properties"]["spec"]["properties"]) == aliases(BitNetRunSpec)


def test_lists_and_strings_of_the_spec_are_bounded(root: Node) -> None:
    """CEL's cost is estimated from the bounds; an unbounded list would make the definition be refused."""
    for path, node in nodes(root["properties"]["spec"], "spec"):
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if node.get("type") == "string":
            assert "maxLength" in node or "enum" in node, path


def test_the_status_has_neither_defaults_nor_choices(root: Node) -> None:
    """An operator newer than the definition must be able to write what it knows."""
    for path, node in nodes(root["properties"]["status"], "status"):
        assert not {"default", "enum"} & set(node), path


def test_defaults_are_those_of_the_models(root: Node) -> None:
    for path, node in nodes(root["properties"]["spec"], "spec"):
        if "default" not in node:
            continue
        record: Any = BitNetRunSpec
        *parents, last = [part.removesuffix("[]") for part in path.split(".")[1:]]
        for part in parents:
            record = record_in(field(record, part).annotation)
        if "properties" in node:
            assert node["default"] == {}, path
            assert not node.get("required"), path
        else:
            default = field(record, last).default
            assert node["default"] == (list(default) if isinstance(default, tuple) else default), path


def field(record: type[Record], alias: str) -> Any:
    """The field that is called `alias` in YAML."""
    return next(info for name, info in record.model_fields.items() if (info.alias or name) == alias)


def record_in(annotation: Any) -> type[Record]:
    """The record inside `X`, `X | None` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return annotation
    return next(part for part in annotation.__args__ if isinstance(part, type) and issubclass(part, Record))


def test_every_rule_has_its_place(root: Node) -> None:
    placed = dict(nodes(root))
    for path, rules in RULES.items():
        written = placed[path]["x-kubernetes-validations"]
        assert [rule.to_schema() for rule in rules] == written[len(written) - len(rules) :], path


def test_every_message_is_a_sentence_with_a_mend(root: Node) -> None:
    verbs = re.compile(r"\b(write|give|add|remove|choose|order|name|make)\b")
    for path, node in nodes(root):
        for entry in node.get("x-kubernetes-validations", []):
            assert verbs.search(entry["message"]), (path, entry["message"])
            assert "\n" not in entry["message"]
            assert len(entry["message"]) <= 2048


def test_everything_is_immutable_but_what_is_named(root: Node) -> None:
    """A field added to the spec is immutable until somebody decides otherwise."""
    spec = root["properties"]["spec"]["properties"]
    in_parts = ("workers", "checkpoint")
    fields = set(spec) - set(in_parts)
    fields |= {f"{block}.{name}" for block in in_parts for name in spec[block]["properties"]}
    guarded = {rule.field_path for rule in RULES["spec"] if "oldSelf" in rule.rule}
    assert guarded == {f".{name}" for name in fields - MUTABLE}
    assert all(isinstance(rule, Rule) and "make a new run" in rule.message for rule in RULES["spec"][-1:])


def test_printer_columns(definition: Node) -> None:
    columns = definition["spec"]["versions"][0]["additionalPrinterColumns"]
    shown = [column["name"] for column in columns if not column.get("priority")]
    wide = [column["name"] for column in columns if column.get("priority")]
    assert shown == ["Phase", "Step", "Total", "Loss", "Tokens/s", "Segment", "Age"]
    assert wide == ["Training-Phase", "Attempts", "Checkpoint"]


def test_every_column_shows_a_field_that_exists(definition: Node, root: Node) -> None:
    placed = dict(nodes(root))
    for column in definition["spec"]["versions"][0]["additionalPrinterColumns"]:
        path = column["jsonPath"].lstrip(".")
        assert path.startswith("metadata.") or placed[path]["type"] == column["type"]


def test_names(definition: Node) -> None:
    spec = definition["spec"]
    assert definition["metadata"]["name"] == "bitnetruns.bitnet.training"
    assert (spec["group"], spec["scope"], spec["names"]["shortNames"]) == (
        "bitnet.training",
        "Namespaced",
        ["bnr"],
    )
    assert spec["versions"][0]["subresources"] == {"status": {}}


def test_a_keyword_the_generator_does_not_know_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_KEPT", tuple(key for key in schema._KEPT if key != "maxItems"))
    with pytest.raises(schema.SchemaError, match=r"spec\.\S+: the generator does not know maxItems"):
        schema.custom_resource_definition()


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.from_regex(r"[a-z .:#'\"{}%-]{0,200}", fullmatch=True),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(plain_values)
def test_yaml_gives_every_value_back(value: Any) -> None:
    assert yaml.safe_load(to_yaml(value)) == value


@pytest.mark.parametrize(
    "text", ["yes", "No", "null", "1e5", "0.5", "2024-01-01", "a: b", "a #b", "", " a", "- a", "~"]
)
def test_text_that_yaml_would_take_for_something_else_is_quoted(text: str) -> None:
    assert yaml.safe_load(to_yaml({"key": text})) == {"key": text}


def test_long_text_is_folded() -> None:
    written = to_yaml({"description": "word " * 40 + "end"})
    assert written.startswith("description: >-\n  word word")
    assert max(map(len, written.splitlines())) <= 102
