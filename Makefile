# `make demo` and `make test` each work as the first command on a fresh clone.
# Needs Python 3.11 or newer and make; PYTHON=... chooses the interpreter, VENV=... another place for the environment.

VENV ?= .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev

# One thread a library: replicas, workers and tests share few cores, and each would otherwise start a thread per core.
export OMP_NUM_THREADS ?= 1
# Nothing is fetched from a model hub and nothing is reported to anybody while tests and the demo run.
export HF_HUB_OFFLINE ?= 1
export TRANSFORMERS_OFFLINE ?= 1
export VLLM_NO_USAGE_STATS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
# Byte code is kept: dozens of processes import the same modules.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv dev demo test test-cluster test-again test-slow coverage check docs format manifests lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(RUNTIME)  ## make .venv with the locked packages and the project (editable); nothing for tests

dev: $(DEV)  ## add the tools of the checks and tests: Python and npm packages, Prometheus, Redis, Chromium

$(RUNTIME): requirements/cpu.lock pyproject.toml scripts/install
	@scripts/install "$(VENV)"
	@touch "$@"

$(DEV): requirements/cpu.lock pyproject.toml scripts/install requirements/dev.lock requirements/workers.lock tests/client_lib/proxy/node/package-lock.json tests/client_lib/typing/package-lock.json tests/end_to_end/node/package-lock.json clients/package-lock.json
	@scripts/install --dev "$(VENV)"
	@touch "$(RUNTIME)" "$@"

demo: $(RUNTIME)  ## a private prompt under every variant of the demo bundle, end to end on this machine
	@$(BIN)/delctl demo

# Two at a time. The tests of a file stay together, and so do the files that share a server.
PYTEST := $(BIN)/python -m pytest
TESTS := $(PYTEST) -m "not slow and not cluster" -n 2 --dist loadscope

test: $(DEV)  ## the tests that start no cluster (minutes)
	$(TESTS)

# Three at a time: they wait for clusters as much as they compute. Only the files that have such
# tests: to import all others takes longer than some of them.
CLUSTER_FILES = tests/cluster $(shell grep -rlF mark.cluster tests --include='test_*.py')

test-cluster: $(DEV)  ## the tests that start clusters, serve under load and kill processes
	$(PYTEST) -m "not slow and cluster" -n 3 --dist loadfile $(CLUSTER_FILES)

test-again: $(DEV)  ## the tests that failed when they were last run, one at a time
	$(PYTEST) -m "not slow" --last-failed --last-failed-no-failures none

test-slow: $(DEV)  ## the tests marked slow
	$(PYTEST) -m slow --timeout 1200

coverage: $(DEV)  ## line coverage of `make test`, by file
	$(TESTS) --cov --cov-report=term:skip-covered

check: $(DEV)  ## style, types, layers, and the rules on files in the tree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_private.py
	$(BIN)/python scripts/check_tree.py
	$(BIN)/python scripts/check_advisories.py

# The site has an environment of its own: its packages and those of the project need not fit together.
DOCS_VENV ?= .venv-docs

$(DOCS_VENV)/.installed: requirements/docs.lock
	"$${PYTHON:-python3}" -m venv --clear "$(DOCS_VENV)"
	$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check install -q --no-compile --require-hashes -r requirements/docs.lock
	@touch "$@"

docs: $(DOCS_VENV)/.installed  ## the documentation site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet

format: $(DEV)  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

manifests: $(DEV)  ## write the generated files of the Helm chart and the plain manifests in cluster/manifests
	$(BIN)/python scripts/manifests.py

lock: $(RUNTIME)  ## write requirements/*.lock anew; UPGRADE=--upgrade takes the newest allowed versions
	$(BIN)/python scripts/lock.py $(UPGRADE)

clean:  ## remove .venv and everything else that make and the tools have made
	rm -rf "$(VENV)" "$(DOCS_VENV)" site tests/client_lib/proxy/node/node_modules tests/client_lib/typing/node_modules tests/end_to_end/node/node_modules clients/node_modules clients/typescript/dist examples/typescript/node_modules examples/typescript/dist build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
