"""An upgrade from the version before: what Kubernetes never changes stays, and so do names."""

from pathlib import Path
from typing import Any

import pytest

from chart import CHART, Given, Manifest, manifests

BEFORE = Path(__file__).parent / "bitnet-operator-0.1.0.tgz"
"""As `helm package` made it."""
FIXED: dict[str, tuple[str, ...]] = {
    "ClusterRoleBinding": ("roleRef",),
    "Deployment": ("spec.selector",),
    "RoleBinding": ("roleRef",),
    "Secret": ("type",),
    "Service": ("spec.clusterIP",),
}
"""Fields that cannot be changed once they are set, by kind."""


def by_identity(chart: Path) -> dict[tuple[str, str | None, str], Manifest]:
    made = manifests(Given(release="bitnet-operator"), "--skip-tests", chart=chart)
    return {
        (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]): each for each in made
    }


def field(manifest: Any, path: str) -> Any:
    for name in path.split("."):
        manifest = manifest.get(name, {})
    return manifest


def test_what_cannot_be_changed_stays() -> None:
    before, now = by_identity(BEFORE), by_identity(CHART)
    both = before.keys() & now.keys()
    assert {kind for kind, *_ in both} >= FIXED.keys()
    for identity in both:
        for path in FIXED.get(identity[0], ()):
            assert field(before[identity], path) == field(now[identity], path), (identity, path)


@pytest.mark.parametrize("kind", ["ServiceAccount", "Deployment", "ClusterRole", "Secret"])
def test_what_others_refer_to_keeps_its_name(kind: str) -> None:
    before, now = by_identity(BEFORE), by_identity(CHART)
    assert {each for each in before if each[0] == kind} <= now.keys()
