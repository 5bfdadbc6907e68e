"""The Dockerfile, the chart and the project agree on user, ports, commands and versions."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from bitnet_crds.protocol import PROGRESS_PORT
from bitnet_operator.main import app, operate
from chart import container, pod, render

CHECKOUT = Path(__file__).parents[1]
DOCKERFILE = (CHECKOUT / "Dockerfile").read_text().replace("\\\n", " ")
PROJECT: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def stage(name: str) -> list[tuple[str, str]]:
    """A stage's instructions, each with its arguments."""
    (found,) = re.findall(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    lines = [line for line in found.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def argument(name: str, instruction: str) -> str:
    """What follows the only instruction of that kind in a stage."""
    (found,) = [rest for word, rest in stage(name) if word == instruction]
    return found


def test_the_operators_user_is_the_charts() -> None:
    context = pod(render())["securityContext"]
    assert argument("operator", "USER") == f"{context['runAsUser']}:{context['runAsGroup']}"


def test_the_operators_ports_are_the_charts_and_the_options() -> None:
    exposed = argument("operator", "EXPOSE").split()
    assert exposed == [str(port["containerPort"]) for port in container(render())["ports"]]
    options = typer.main.get_command(app).params
    assert exposed == [str(option.default) for option in options if str(option.name).endswith("_port")]


def test_the_operators_command_is_the_charts_and_the_projects() -> None:
    command = json.loads(argument("operator", "ENTRYPOINT"))
    assert container(render())["command"] == command
    assert PROJECT["scripts"][command[0]] == f"{operate.__module__}:main"


def test_the_trainer_has_what_kernels_are_built_with() -> None:
    (packages,) = [rest.split() for word, rest in stage("trainer") if word == "RUN" and "apt-get" in rest]
    assert {"gcc", "libc6-dev"} <= set(packages)


def test_the_trainers_command_is_the_projects() -> None:
    *python, module = json.loads(argument("trainer", "ENTRYPOINT"))
    assert python == ["python3", "-m"]
    assert PROJECT["scripts"]["bitnet-trainer"] == f"{module}.__main__:main"


def test_the_trainers_port_is_the_contracts() -> None:
    assert argument("trainer", "EXPOSE") == str(PROGRESS_PORT)


def test_the_trainers_image_holds_what_the_quickstart_calls() -> None:
    _, run = yaml.safe_load_all((CHECKOUT / "examples/quickstart-cluster.yaml").read_text())
    (fetch,) = run["spec"]["workers"]["template"]["spec"]["initContainers"]
    script = fetch["command"][1]
    assert ("COPY", f"{script} {Path(script).parent}/") in stage("trainer")


def test_the_trainers_image_has_the_pip_that_the_quickstart_downloads_by() -> None:
    # After the lock file's setuptools, which Python's own older one does not replace then.
    assert stage("trainer-build")[-1] == ("RUN", "/opt/bitnet/bin/python3 -m ensurepip")
    assert ("COPY", "--from=trainer-build /opt/bitnet .") in stage("trainer")
    assert re.search(r"^setuptools==", (CHECKOUT / "requirements/trainer.lock").read_text(), re.MULTILINE)


def test_the_quickstart_fetches_with_the_image_that_the_chart_trains_in() -> None:
    _, run = yaml.safe_load_all((CHECKOUT / "examples/quickstart-cluster.yaml").read_text())
    (fetch,) = run["spec"]["workers"]["template"]["spec"]["initContainers"]
    assert f"--trainer-image={fetch['image']}" in container(render())["args"]


@pytest.mark.parametrize("name", ["operator", "trainer"])
def test_labels_say_version_and_licence(name: str) -> None:
    labels = dict(re.findall(r"org\.opencontainers\.image\.(\w+)=(\S+)", argument(name, "LABEL")))
    chart = yaml.safe_load((CHECKOUT / "charts/bitnet-operator/Chart.yaml").read_text())
    assert labels["title"] == f"bitnet-{name}"
    assert labels["version"] == PROJECT["version"] == chart["appVersion"]
    assert labels["licenses"] == PROJECT["license"]


def test_what_the_operators_image_leaves_out_is_never_imported() -> None:
    removed = re.findall(r"rm -r (kubernetes\S+) (kubernetes\S+)", DOCKERFILE)
    assert len(removed) == 2
    program = f"""
import fnmatch, importlib, pkgutil, sys
import bitnet_operator

class Missing:
    def find_spec(self, name, path=None, target=None):
        if any(fnmatch.fnmatchcase(name.replace(".", "/") + end, left_out)
               for left_out in {[path for pair in removed for path in pair]} for end in ("", ".py")):
            refused.add(name)
            raise ModuleNotFoundError(name)

refused = set()
sys.meta_path.insert(0, Missing())
for module in pkgutil.walk_packages(bitnet_operator.__path__, "bitnet_operator."):
    importlib.import_module(module.name)
# kopf asks for it, and does without.
assert refused == {{"kubernetes.client.models.v1_object_meta"}}, refused
"""
    subprocess.run([sys.executable, "-c", program], check=True)
