"""Every render of the matrix: names, labels, namespaces and selectors that Kubernetes takes, and sizes."""

import gzip
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from chart import CHART, CLUSTER_WIDE, MATRIX, NAMESPACE, Given, Manifest, helm, manifests

LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
SAME_NAME_AS_A_LABEL = 63
"""Characters; longer names make trouble wherever a name becomes a label or a host."""
LARGEST = 1024 * 1024
"""Bytes of a ConfigMap, and of the Secret in which helm keeps a release, packed."""

renders = pytest.mark.parametrize("given", MATRIX.values(), ids=MATRIX.keys())


@renders
def test_helm_lint_finds_nothing(given: Given) -> None:
    """It knows of no kinds but Kubernetes' own."""
    options = replace(given, apis=()).options()
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), *options)


@renders
def test_every_object_is_named_labelled_and_placed(given: Given) -> None:
    made = manifests(given)
    for manifest in made:
        metadata = manifest["metadata"]
        where = f"{manifest['kind']} {metadata['name']}"
        assert len(metadata["name"]) <= SAME_NAME_AS_A_LABEL, where
        assert isinstance(metadata.get("namespace", ""), str), where
        assert ("namespace" in metadata) == (manifest["kind"] not in CLUSTER_WIDE), where
        labels = metadata["labels"]
        assert labels["app.kubernetes.io/instance"] == given.release, where
        assert labels["app.kubernetes.io/managed-by"] == "Helm", where
        assert all(LABEL.fullmatch(value) for value in labels.values()), where
        for value in metadata.get("annotations", {}).values():
            assert isinstance(value, str), where
    identities = Counter(
        (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in made
    )
    assert [identity for identity, count in identities.items() if count > 1] == []


@renders
def test_selectors_find_the_operators_pods_and_no_other(given: Given) -> None:
    made = manifests(given)
    (deployment,) = [each for each in made if each["kind"] == "Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    others = [each["metadata"]["labels"] for each in made if each["kind"] == "Pod"]
    selectors = [deployment["spec"]["selector"]["matchLabels"]]
    for manifest in made:
        if manifest["kind"] in ("Service", "NetworkPolicy", "PodDisruptionBudget"):
            found = manifest["spec"].get("selector") or manifest["spec"]["podSelector"]
            selectors.append(found.get("matchLabels", found))
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not any(selector.items() <= other.items() for other in others)


@renders
def test_a_right_is_granted_to_an_account_that_is_there(given: Given) -> None:
    made = manifests(given)
    roles = {(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in made}
    pods = [each for each in made if each["kind"] in ("Deployment", "Pod")]
    accounts = {
        (each["spec"].get("template", each)["spec"]["serviceAccountName"], each["metadata"]["namespace"])
        for each in pods
    }
    for manifest in made:
        if manifest["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            role = manifest["roleRef"]
            assert (role["kind"], manifest["metadata"].get("namespace"), role["name"]) in roles
            (subject,) = manifest["subjects"]
            assert (subject["name"], subject["namespace"]) in accounts


@renders
def test_it_fits_where_helm_and_kubernetes_keep_it(given: Given) -> None:
    """A release is kept packed and in base64, with the chart's own files."""
    made = manifests(given)
    for manifest in made:
        if manifest["kind"] == "ConfigMap":
            assert len(json.dumps(manifest)) < LARGEST
    chart = "".join(path.read_text() for path in sorted(CHART.rglob("*")) if path.is_file())
    packed = gzip.compress((chart + yaml.dump_all(made, Dumper=yaml.CSafeDumper)).encode())
    assert len(packed) * 4 / 3 < 0.8 * LARGEST


def test_the_matrix_has_each_value_in_some_render() -> None:
    """But what is a mere word of a label or an address of an image."""
    written = " ".join(value for given in MATRIX.values() for value in given.values)
    written += (CHART / "values-gke.yaml").read_text()
    plain = {"global", "progressIntervalSeconds", "resources", "terminationGracePeriodSeconds", "alerts"}
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert {name for name in values if name not in written} <= plain


def test_what_a_release_makes_of_the_default_values_is_what_it_makes_with_them_written_out(
    tmp_path: Path,
) -> None:
    """So that values.yaml, copied as a start, changes nothing."""
    copied = tmp_path / "values.yaml"
    copied.write_text((CHART / "values.yaml").read_text())
    again = helm("template", "trial", str(CHART), "--namespace", NAMESPACE, "--values", str(copied))
    documents: list[Manifest] = [each for each in yaml.load_all(again, yaml.CSafeLoader) if each]
    assert documents == manifests(Given())
