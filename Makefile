# Everything that a newcomer, a contributor and CI run. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export LLMTRAIN_CACHE ?= $(HOME)/.cache/llmtrain
export PYTHONPATH := operator:trainer_image:.
UV_VERSION := 0.13.8
UV := $(LLMTRAIN_CACHE)/uv-$(UV_VERSION)/bin/uv
PY := .venv/bin/python
PYTEST := $(PY) -m pytest
LOCK := $(UV) pip compile -q --generate-hashes --python-version 3.11 --no-emit-index-url --no-header pyproject.toml

help:  ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: .venv/.installed system  ## Python environment, Debian packages, cluster binaries (cached)
	$(PY) -m devcluster binaries > /dev/null

$(UV):
	python3 -m venv $(@D)/..
	$(@D)/pip install -q uv==$(UV_VERSION)

# Compiled here: where Python is told to write no bytecode each start would compile all of torch.
.venv/.installed: requirements/dev.txt pyproject.toml | $(UV)
	$(UV) venv -q --allow-existing --python python3 .venv
	$(UV) pip sync -q --compile-bytecode --python $(PY) --require-hashes requirements/dev.txt
	$(UV) pip install -q --python $(PY) --no-deps -e .
	touch $@

system: .venv/.installed
	$(PY) -m devcluster setup

browser: .venv/.installed  ## A headless Chromium, for tests of the live page
	$(PY) -m devcluster browser

lock: | $(UV)  ## Re-pin requirements/ from pyproject.toml
	$(LOCK:pyproject.toml=requirements/build.in) -o requirements/build.txt
	$(LOCK) --extra operator -o requirements/operator.txt
	$(LOCK) --extra trainer --extra trackers -o requirements/trainer.txt
	$(LOCK) --extra operator --extra trainer --extra trackers --extra devcluster --extra dev -o requirements/dev.txt
	$(LOCK:pyproject.toml=requirements/dlrover.in) -o requirements/dlrover.txt

images: setup  ## Build both images with buildah (the torch layer once)
	$(PY) -m devcluster images

sbom: images  ## What is in both images, as CycloneDX, in build/sbom/
	$(PY) -m devcluster.images.sbom build/sbom

# Given on the command line: in the environment it is there for other reasons.
OWN_CLUSTER := $(if $(findstring command line,$(origin KUBECONFIG)),$(KUBECONFIG))

demo: $(if $(OWN_CLUSTER),.venv/.installed,images)  ## A job from apply to a finished model on a real cluster (KUBECONFIG=... IMAGE=... for yours)
	$(PY) -m devcluster.demo $(if $(OWN_CLUSTER),--kubeconfig $(OWN_CLUSTER) --image "$(IMAGE)")

boards: .venv/.installed  ## Regenerate the chart's dashboards and alerts from dashboards/
	$(PY) -m dashboards

pictures: images  ## Draw the boards from a real run with a fault, into docs/pictures/
	$(PY) -m dashboards.pictures

cluster-up: images  ## Start the embedded cluster
	$(PY) -m devcluster up

cluster-down: .venv/.installed  ## Stop it and remove every trace
	$(PY) -m devcluster down

crd: .venv/.installed docs  ## Regenerate the CRD and its reference from the models
	$(PY) -m llmtrain_operator.api.crd > crds/llmtrainjobs.yaml
	cp crds/llmtrainjobs.yaml charts/llmtrain/files/llmtrainjobs.yaml

docs: .venv/.installed  ## Regenerate docs/api.md from the models
	$(PY) -m llmtrain_operator.api.reference > docs/api.md

picture: .venv/.installed browser  ## Draw docs/pictures/dashboard.png anew, from a real run on this machine
	LLMTRAIN_PICTURE=docs/pictures/dashboard.png $(PYTEST) tests/e2e/test_dashboard_local.py

lint: .venv/.installed  ## ruff, mypy --strict, import rules
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy operator/llmtrain_operator trainer_image/llmtrain_trainer devcluster dashboards
	.venv/bin/lint-imports

test: lint images browser  ## Every tier
	$(PYTEST) tests/unit tests/api tests/e2e

test-unit: .venv/.installed  ## Pure tests, seconds
	$(PYTEST) tests/unit

test-api: setup browser  ## Against a real etcd and kube-apiserver
	$(PYTEST) tests/api

test-e2e: images browser  ## Real kubelets, real images, real faults
	$(PYTEST) tests/e2e

test-faults: setup  ## Kills and damages of flash checkpoints; FULL=1: 200 and 1,000, into build/bench/faults.json
	$(PYTEST) tests/e2e/test_flash_faults.py

soak: images  ## 30 minutes of training under load 8: no member may be declared lost
	LLMTRAIN_SOAK_SECONDS=1800 $(PYTEST) --timeout 2400 tests/e2e -k soak

SEED ?= 1
FAULTS ?= 200
NODE_FAULTS ?= 40

chaos: $(if $(filter 0,$(NODE_FAULTS)),setup,images)  ## Random faults against undisturbed runs (SEED, FAULTS on processes, NODE_FAULTS on nodes)
	$(PY) -P tests/bench/chaos.py --seed $(SEED) --faults $(FAULTS) --node-faults $(NODE_FAULTS)

bench-recovery bench-failover bench-goodput: images  # these have a cluster

bench-%: setup  ## bench-operator: measure, print a table, write build/bench/NAME.json
	$(PY) -P tests/bench/$*.py

.PHONY: help setup system browser lock images sbom demo cluster-up cluster-down crd docs boards picture pictures lint test test-unit test-api test-e2e test-faults chaos soak
