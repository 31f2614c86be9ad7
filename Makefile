# SPDX-License-Identifier: GPL-2.0-only
# `make top` and `make test` install what they need themselves; see scripts/setup.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Attaching BPF programs needs root; everything else does not.
# Under sudo, do not leave root's files in the working tree.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env)
TIDY := $(if $(SUDO),env PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/kmemwatch-hypothesis)
BIN := .venv/bin
PYTEST := $(SUDO) $(TIDY) $(BIN)/python -m pytest $(if $(SUDO),-p no:cacheprovider)
# Unit tests run on all processors, a file on one of them; tests that watch the kernel must be alone.
SIDE_BY_SIDE := -n auto --dist loadfile
# Options for the command, for example: make top ARGS="--view zombies"; make test-unit ARGS="-k units"
ARGS ?=
# pytest ends with 5 when there is no test that ARGS asks for.
NONE_IS_RIGHT := $(if $(ARGS),|| [ $$? -eq 5 ])
# For example: make test-lab KERNELS=patched,7.x; see tests/lab/kernels.py
KERNELS ?= all

.PHONY: help setup setup-test top test test-unit test-live test-e2e test-load test-lab lab-kernels lab-facts lab-results lab-reports \
	bench dashboards docs deb lint clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/\1\t\2/' | expand -t 14

setup: ## install what kmemwatch needs, and make .venv/bin/kmemwatch
	@scripts/setup run

setup-test:
	@scripts/setup test

top: setup ## install what is missing, then show live which cgroups and caches hold kernel memory
	@$(SUDO) $(BIN)/kmemwatch top $(ARGS)

test: lint ## install what is missing, then run every check and test, some in QEMU
	$(PYTEST) $(SIDE_BY_SIDE) tests/unit $(ARGS) $(NONE_IS_RIGHT)
	$(PYTEST) tests/live tests/e2e tests/load tests/lab $(ARGS) $(NONE_IS_RIGHT)

test-unit: setup-test ## run the tests that need neither root nor a special kernel
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/unit $(ARGS)

test-live: setup-test ## run the tests that attach to the running kernel
	$(PYTEST) tests/live $(ARGS)

lab-kernels: setup-test ## get the lab's kernels, and build those with our patches (15 minutes on two CPUs)
	KMEMWATCH_LAB_KERNELS=all $(SUDO) $(TIDY) $(BIN)/python -m tests.lab.kernels

lab-facts: setup-test ## record the facts of the lab's kernels, for the tests of the plan
	$(SUDO) $(TIDY) $(BIN)/python -m tests.lab.facts

test-e2e: setup-test ## test with the distribution's Prometheus and Alertmanager
	$(PYTEST) tests/e2e $(ARGS)

test-load: setup-test ## test load and faults for minutes, and print figures (docs/running.md)
	KMEMWATCH_LOAD=long $(PYTEST) tests/load $(ARGS)

dashboards: setup-test ## write dashboards/*.json from their source, and draw docs/dashboards/*.png
	$(BIN)/python -m dashboards
	KMEMWATCH_PICTURES=$(CURDIR)/docs/dashboards $(PYTEST) tests/e2e -k draw

docs: setup-test ## write the tables of docs/interfaces.md and the JSON Schema from the source
	$(BIN)/python -m tests.docs_tables
	$(BIN)/python -m tests.snapshot_schema

test-lab: setup-test ## boot KERNELS (a list; all of them) in QEMU and run the live tests in them
	KMEMWATCH_LAB_KERNELS=$(KERNELS) $(SUDO) $(TIDY) $(BIN)/python -m tests.lab.kernels
	KMEMWATCH_LAB_KERNELS=$(KERNELS) $(PYTEST) tests/lab $(ARGS)

lab-results: ## run the whole matrix and keep the results in tests/lab/results.json and docs/kernels.md
	KMEMWATCH_LAB_RESULTS=keep $(MAKE) test-lab

lab-reports: setup-test ## compare kernels with and without the patches, and write docs/reports (15 minutes)
	KMEMWATCH_LAB_KERNELS=baseline,patched,6.1 $(SUDO) $(TIDY) $(BIN)/python -m tests.lab.kernels
	$(SUDO) $(TIDY) $(BIN)/python -m tests.lab.reports $(ARGS)

bench: ## measure what kmemwatch costs and compare with docs/costs.md (20 minutes)
	@scripts/setup bench
	$(SUDO) $(TIDY) nice $(BIN)/python -m tests.bench $(ARGS)

deb: setup ## build the Debian package, dist/kmemwatch_VERSION_all.deb
	packaging/debian/build

lint: setup-test ## run ruff, mypy --strict, import layers, shellcheck
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	! $(BIN)/python -c 'import grafana_foundation_sdk' 2>/dev/null || $(BIN)/mypy --python-version 3.11 dashboards
	$(BIN)/lint-imports --no-logo
	$(BIN)/shellcheck scripts/setup .ci/run tests/lab/*.sh packaging/debian/{build,postinst,prerm,postrm}

clean: ## remove the virtual environment and everything generated
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
