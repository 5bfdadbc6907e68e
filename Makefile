# What one does here, from a bare machine on: Python 3.11 or newer, make and git are enough.
# `make help` lists it. Commands run in .venv, which follows the lock files and pyproject.toml.

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test cluster-programs test-cluster test-cluster-thorough test-kueue lint format verify crds docs bench lock clean
SHELL := /bin/bash

BIN := .venv/bin
# Named by content, so that a fresh clone, a restored cache and a touched file all do the right thing.
STAMP := .venv/installed-$(shell cat requirements/dev.lock pyproject.toml | git hash-object --stdin)

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-22s%s\n", $$1, $$2 }' Makefile

setup: $(STAMP)  ## Make .venv and install what the lock files pin

$(STAMP):
	@scripts/setup.sh
	@rm -f .venv/installed-* && touch $@

quickstart: setup  ## Train SmolLM2-135M to 1.58 bits on Shakespeare: six minutes on two CPU cores
	@$(BIN)/python scripts/fetch_quickstart.py
	$(BIN)/bitnetctl run examples/quickstart.yaml

test: setup  ## Every test that needs no cluster and no GPU
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/install-chart-tools.sh
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=auto --dist=loadfile --durations=15

cluster-programs: root-or-cluster setup  ## Install and build what test-cluster starts, where the cache lacks it
	@[ -n "$$BITNET_TEST_KUBECONFIG" ] || PATH="$(CURDIR)/$(BIN):$$PATH" scripts/install-cluster-prerequisites.sh
	@[ -n "$$BITNET_TEST_KUBECONFIG" ] || (cd tests/cluster && $(CURDIR)/$(BIN)/python -m local_cluster build)

test-cluster: cluster-programs  ## The same on a real Kubernetes, built and started here (root), or BITNET_TEST_KUBECONFIG's
	@$(BIN)/python scripts/fetch_quickstart.py
	$(BIN)/pytest -m 'cluster and not thorough' tests/cluster -v --durations=0

test-cluster-thorough: cluster-programs  ## The same, and every fault under both backends: ten minutes more
	@$(BIN)/python scripts/fetch_quickstart.py
	$(BIN)/pytest -m cluster tests/cluster -v --durations=0

test-kueue: cluster-programs  ## Runs in a real Kueue's queue, on such a cluster; the first time it builds Kueue
	@$(BIN)/python scripts/fetch_quickstart.py
	$(BIN)/pytest -m kueue tests/cluster -v --durations=0

.PHONY: root-or-cluster
root-or-cluster:
	@[ "$$(id -u)" = 0 ] || [ -n "$$BITNET_TEST_KUBECONFIG" ] || { echo "test-cluster: not root, so no cluster can be \
	started: run it as root, or name one that runs: make test-cluster BITNET_TEST_KUBECONFIG=/path/to/kubeconfig" >&2; exit 1; }

lint: setup  ## Style, types, and who may import whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy scripts
	$(BIN)/lint-imports

format: setup  ## Mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

verify: setup  ## Generated files are up to date
	$(BIN)/python -m bitnet_crds.schema --check
	$(BIN)/python scripts/draw_life.py --check
	$(BIN)/python scripts/draw_dashboards.py --check
	$(BIN)/python scripts/list_metrics.py --check
	$(BIN)/python scripts/grafana_alerts.py --check
	$(BIN)/python scripts/chart_readme.py --check

crds: setup  ## Generate the CRD anew
	$(BIN)/python -m bitnet_crds.schema

docs: setup  ## Generate anew what docs/runs.md, docs/metrics.md, the chart's alerts, dashboards and README have from elsewhere
	$(BIN)/python scripts/draw_life.py
	$(BIN)/python scripts/list_metrics.py
	$(BIN)/python scripts/grafana_alerts.py
	$(BIN)/python scripts/draw_dashboards.py
	$(BIN)/python scripts/chart_readme.py

bench: setup  ## Run every benchmark that needs no GPU
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

lock:  ## Pin anew what pyproject.toml asks for
	scripts/lock.sh

clean:  ## Remove what make made here; runs/ stays, and ~/.cache/bitnet-operator
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
