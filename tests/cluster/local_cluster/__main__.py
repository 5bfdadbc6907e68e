"""Command line: `python3 -m local_cluster up | down | build | env`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from local_cluster.build import build_all
from local_cluster.cluster import LocalCluster
from local_cluster.errors import LocalClusterError
from local_cluster.operator_image import operator_image
from local_cluster.programs import FAKE_GCS_SERVER, KINDS, PROGRAMS
from local_cluster.settings import cache_folder, tools_folder


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="local_cluster", description=__doc__)
    parser.add_argument("action", choices=("up", "down", "build", "env"))
    parser.add_argument("--work", type=Path, default=cache_folder() / "work", help="folder of state and logs")
    options = parser.parse_args(arguments)
    cluster = LocalCluster(options.work, report=_report)
    try:
        if options.action == "build":
            build_all(_report, (*PROGRAMS, FAKE_GCS_SERVER, KINDS))
            operator_image(Path(__file__).resolve().parents[3], _report)
        elif options.action == "down":
            _down(cluster)
        elif options.action == "env":
            _print_environment(cluster)
        else:
            _up(cluster)
    except LocalClusterError as error:
        print(f"local_cluster: {error}", file=sys.stderr)
        return 1
    return 0


def _up(cluster: LocalCluster) -> None:
    start = time.monotonic()
    if cluster.is_running():
        _report(f"runs already, in {cluster.work}")
    else:
        cluster.start()
        _report(f"ready after {time.monotonic() - start:.1f} s; logs are in {cluster.work / 'log'}")
    print(f"export KUBECONFIG={cluster.kubeconfig}")


def _down(cluster: LocalCluster) -> None:
    if os.geteuid() != 0:
        raise LocalClusterError("not root: stop the cluster as the user who started it, with sudo -E")
    cluster.stop()
    cluster.kubeconfig.unlink(missing_ok=True)
    _report(f"stopped; logs stay in {cluster.work / 'log'}")


def _print_environment(cluster: LocalCluster) -> None:
    """For `eval "$(python3 -m local_cluster env)"`: the kubeconfig, and kubectl and helm on PATH."""
    if not cluster.is_running():
        start = "start it with python3 -m local_cluster up"
        raise LocalClusterError(f"no cluster runs in {cluster.work}: {start}")
    print(f"export PATH={tools_folder()}:$PATH")
    print(f"export KUBECONFIG={cluster.kubeconfig}")


def _report(line: str) -> None:
    """Stages go to stderr, so that stdout holds nothing but lines for a shell."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
