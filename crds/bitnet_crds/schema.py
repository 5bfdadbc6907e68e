"""Generates the CustomResourceDefinition from the models: `python -m bitnet_crds.schema`."""

import argparse
import difflib
import sys
from pathlib import Path
from typing import Any

from bitnet_crds.cel import matching
from bitnet_crds.errors import ContractError
from bitnet_crds.rules import RULES
from bitnet_crds.spec import API_GROUP, API_VERSION, KIND, BitNetRunSpec
from bitnet_crds.status import BitNetRunStatus
from bitnet_crds.yaml_text import to_yaml

PLURAL = "bitnetruns"

_HEADER = "# Generated from crds/bitnet_crds by `make crds`. Do not edit.\n"
_DESCRIPTION = (
    "Trains one 1.58-bit BitNet language model, from a pretrained model to an evaluated and exported one."
)
_COLUMNS = (
    # name, type, path in status, whether it is shown by `-o wide` alone
    ("Phase", "string", ".status.phase", False),
    ("Step", "integer", ".status.step", False),
    ("Total", "integer", ".status.totalSteps", False),
    ("Loss", "string", ".status.loss", False),
    ("Tokens/s", "integer", ".status.tokensPerSecond", False),
    ("Segment", "string", ".status.segment", False),
    ("Training-Phase", "string", ".status.trainingPhase", True),
    ("Attempts", "integer", ".status.attempts", True),
    ("Checkpoint", "integer", ".status.checkpointStep", True),
    ("Age", "date", ".metadata.creationTimestamp", False),
)
_LIST_KEYS = {"status.segments": "index", "status.conditions": "type"}
"""Lists whose entries have an identity; server-side apply merges them by it."""
_SETS = {"spec.classification.labels", "spec.export.formats"}
"""Lists in which the API server refuses a value that is there twice."""
_KEPT = (
    *("description", "type", "format", "enum", "default", "pattern", "minLength", "maxLength"),
    *("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minItems", "maxItems", "maxProperties"),
    *("x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields", "additionalProperties"),
    *("required", "properties", "items"),
)
"""Keywords that a structural schema may have, in the order in which they are written."""
_LEFT_OUT = {"title", "$defs", "x-mend"}


class SchemaError(ContractError):
    """A model says something that a structural schema cannot say, or that this generator does not know."""


def structural_schema(model: type[BitNetRunSpec] | type[BitNetRunStatus], path: str) -> dict[str, Any]:
    """The structural OpenAPI schema of `model`, with the CEL rules of `path` and below.

    Raises SchemaError for a keyword that would be lost on the way.
    """
    document = model.model_json_schema(by_alias=True)
    return _structural(document, document.get("$defs", {}), path)


def custom_resource_definition() -> dict[str, Any]:
    """The CustomResourceDefinition, as plain values."""
    root = {
        "description": _DESCRIPTION,
        "type": "object",
        "required": ["metadata", "spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": API_VERSION},
            "kind": {"type": "string", "description": KIND},
            "metadata": {"type": "object"},
            "spec": structural_schema(BitNetRunSpec, "spec"),
            "status": structural_schema(BitNetRunStatus, "status"),
        },
        "x-kubernetes-validations": [rule.to_schema() for rule in RULES[""]],
    }
    columns = [
        {"name": name, "type": kind, "jsonPath": path} | ({"priority": 1} if wide else {})
        for name, kind, path, wide in _COLUMNS
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{API_GROUP}"},
        "spec": {
            "group": API_GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["bnr"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": API_VERSION.removeprefix(f"{API_GROUP}/"),
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": root},
                }
            ],
        },
    }


def crd_file() -> str:
    """The text of crds/bitnetrun.yaml."""
    return _HEADER + to_yaml(custom_resource_definition())


def chart_template() -> str:
    """The text of the chart's crds.yaml: the same definition, which Helm upgrades and, if told so, keeps."""
    definition = custom_resource_definition()
    metadata = definition.pop("metadata")
    text = to_yaml(definition)
    if "{{" in text:
        raise SchemaError("the definition holds `{{`, which Helm would run; reword that description")
    head, body = text.split("spec:\n", 1)
    kept = "  {{- if .Values.crds.keep }}\n  annotations:\n    helm.sh/resource-policy: keep\n  {{- end }}\n"
    labels = '  labels:\n    {{- include "bitnet-operator.labels" . | nindent 4 }}\n'
    return (
        f"{{{{- if .Values.crds.enabled }}}}\n{_HEADER}{head}metadata:\n  name: {metadata['name']}\n"
        f"{kept}{labels}spec:\n{body}{{{{- end }}}}\n"
    )


def generated_files(root: Path) -> dict[Path, str]:
    """What belongs in each generated file of the source tree at `root`."""
    return {
        root / "crds/bitnetrun.yaml": crd_file(),
        root / "charts/bitnet-operator/templates/crds.yaml": chart_template(),
    }


def _structural(node: dict[str, Any], records: dict[str, Any], path: str) -> dict[str, Any]:
    node = _resolved(node, records)
    in_status = path.split(".")[0] == "status"
    if unknown := sorted(set(node) - set(_KEPT) - _LEFT_OUT):
        raise SchemaError(f"{path}: the generator does not know {', '.join(unknown)}; teach it in schema.py")
    schema = {key: node[key] for key in _KEPT if key in node}
    if schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("additionalProperties") is False:
        # Structural schemas refuse or prune unknown keys by themselves.
        schema.pop("additionalProperties", None)
    if schema.get("type") == "integer":
        schema["format"] = "int64"
    if in_status:
        # An operator newer than the definition must still be able to say how things stand.
        schema.pop("enum", None)
        schema.pop("default", None)
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in schema:
            schema[bound], schema[exclusive] = schema[exclusive], True
    if "items" in schema:
        schema["items"] = _structural(schema["items"], records, f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        schema["additionalProperties"] = _structural(schema["additionalProperties"], records, f"{path}{{}}")
    if "properties" in schema:
        schema["properties"] = {
            name: _structural(member, records, f"{path}.{name}")
            for name, member in schema["properties"].items()
        }
        if "default" in schema:
            # Each field below has its own default, and one place for it is enough.
            schema["default"] = {}
    if path in _LIST_KEYS:
        schema |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [_LIST_KEYS[path]]}
    if path in _SETS:
        schema["x-kubernetes-list-type"] = "set"
    schema = {key: schema[key] for key in (*_KEPT, *schema) if key in schema}
    rules = RULES.get(path, [])
    if "x-mend" in node:
        is_string = schema.get("type") == "string"
        rules = [matching(schema.pop("pattern"), node["x-mend"], is_string=is_string), *rules]
    if rules:
        schema["x-kubernetes-validations"] = [rule.to_schema() for rule in rules]
    return schema


def _resolved(node: dict[str, Any], records: dict[str, Any]) -> dict[str, Any]:
    """The node without `$ref`, `const` and `X or null`: a key with no value is simply left out in YAML."""
    node = dict(node)
    if "anyOf" in node:
        choices = [choice for choice in node.pop("anyOf") if choice != {"type": "null"}]
        if len(choices) != 1:
            raise SchemaError(f"a choice between {len(choices)} types is not structural: {choices}")
        node = _resolved(choices[0], records) | node
    if "$ref" in node:
        node = _resolved(records[node.pop("$ref").rsplit("/", 1)[1]], records) | node
    if "const" in node:
        node["enum"] = [node.pop("const")]
    if node.get("default", "") is None:
        del node["default"]
    return node


def _differences(root: Path) -> list[str]:
    lines: list[str] = []
    for path, wanted in generated_files(root).items():
        found = path.read_text() if path.exists() else ""
        name = str(path.relative_to(root))
        lines += difflib.unified_diff(
            found.splitlines(), wanted.splitlines(), name, f"{name} (generated)", lineterm=""
        )
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Writes the files generated from the models in this source tree; or checks or prints them."""
    parser = argparse.ArgumentParser(prog="python -m bitnet_crds.schema", description=main.__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--check", action="store_true", help="fail, and show how, where a file is not up to date"
    )
    what.add_argument(
        "--print", action="store_true", help="print the CustomResourceDefinition, write nothing"
    )
    chosen = parser.parse_args(arguments)
    root = Path(__file__).resolve().parents[2]
    if chosen.print:
        print(crd_file(), end="")
    elif chosen.check:
        if differences := _differences(root):
            print("\n".join(differences))
            print("The generated files are not up to date. Run `make crds` and commit them.", file=sys.stderr)
            return 1
    else:
        for path, text in generated_files(root).items():
            path.write_text(text)
            print(f"wrote {path.relative_to(root)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
