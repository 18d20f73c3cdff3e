# Every target installs what it needs into .venv (once, and again when pyproject.toml changes).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin/python
READY := .venv/.ready

.PHONY: help setup demo test test-fast check docs generate pictures images bench clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## Install everything into .venv

$(READY): pyproject.toml hack/setup hack/constraints.txt hack/overrides.txt
	@hack/setup
	@touch $@

demo: $(READY)  ## Fine-tune SmolLM2-135M on two CPU processes
	@$(PY) hack/demo.py

test: $(READY)  ## Run all checks and tests
	@$(MAKE) --no-print-directory check
	@hack/control-plane >/dev/null  # before the tests: the first build takes minutes, and tests have a time limit
	@hack/prometheus >/dev/null
	@hack/kubectl >/dev/null
	@! command -v go >/dev/null || hack/kueue >/dev/null
	@$(PY) hack/cluster build
	@hack/chromium >/dev/null
	@echo "On the oldest supported Kubernetes:"
	@KUBEBUILDER_ASSETS=$$(hack/control-plane oldest) $(PY) -m pytest -m oldest tests/cluster
	@echo "On the newest Kubernetes:"
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest

# These tests start no torch, no API server and no browser.
test-fast: $(READY)  ## Run the tests of the core, the API, the chart and the command line (two minutes)
	@$(PY) -m pytest -q tests/core tests/api tests/chart tests/cli tests/kube tests/repo/test_documents.py \
	    tests/repo/test_repository_files.py \
	    --ignore tests/api/test_mesh_torchtitan.py --ignore tests/cli/test_report_browser.py

check: $(READY) docs  ## Check format, lint, types, import layers, documentation site
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

docs: $(READY)  ## Build the documentation site in .cache/site; any warning is an error
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict 2>&1 | grep -v INFO || exit $${PIPESTATUS[0]}

generate: $(READY)  ## Rewrite every generated file
	$(PY) -m hftitan_api.crd > crds/hftitanjobs.yaml.new && mv crds/hftitanjobs.yaml.new crds/hftitanjobs.yaml
	$(PY) -m hftitan_api.reference > docs/spec.md.new && mv docs/spec.md.new docs/spec.md
	$(PY) -m hftitan_operator.cli.reference > docs/commands.md.new && mv docs/commands.md.new docs/commands.md
	$(PY) tests/core/core_golden.py
	$(PY) hack/dashboards
	$(PY) hack/dashboards/document.py
	$(PY) hack/chart.py

pictures: $(READY)  ## Redraw the dashboards in docs/pictures from a test run (three minutes)
	HFTITAN_DASHBOARD_DATA=/tmp/hftitan/answers $(PY) -m pytest -q --basetemp=/tmp/hftitan \
	    tests/cluster/test_monitoring.py -k test_every_query
	$(PY) hack/dashboard-pictures /tmp/hftitan/answers

DOCKER ?= docker
images:  ## Build the operator and trainer images; also with DOCKER=podman or DOCKER=buildah
	$(DOCKER) build --target operator -t ghcr.io/hftitan/operator:0.1.0 .
	$(DOCKER) build --target trainer -t ghcr.io/hftitan/trainer:0.1.0 .

bench: $(READY)  ## Measure tokens/s (with transformers' Trainer as peer), startup time, and MFU on a GPU
	$(PY) bench/trainer.py
	$(PY) bench/startup.py
	$(PY) bench/gpu.py

clean:  ## Remove .venv, .cache and runs
	rm -rf .venv .cache runs
