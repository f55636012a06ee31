# `make demo` and `make test` each work as the first command on a fresh clone.
# Needs Python 3.11 or newer and make; PYTHON=... chooses the interpreter, VENV=... another place for the environment.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := del_core client_lib deployments cluster delctl tests benchmarks examples scripts

# One thread a library: replicas, workers and tests share few cores, and each would otherwise start a thread per core.
export OMP_NUM_THREADS ?= 1
# Nothing is fetched from a model hub and nothing is reported to anybody while tests and the demo run.
export HF_HUB_OFFLINE ?= 1
export TRANSFORMERS_OFFLINE ?= 1
export VLLM_NO_USAGE_STATS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow check docs format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP)  ## make .venv and install the locked packages and the project (editable)

$(STAMP): requirements/cpu.lock requirements/dev.lock pyproject.toml tests/client_lib/proxy/node/package-lock.json tests/client_lib/typing/package-lock.json examples/typescript/package-lock.json scripts/install
	@scripts/install "$(VENV)"
	@touch "$@"

demo: $(STAMP)  ## a private prompt under every variant of the demo bundle, end to end on this machine
	@$(BIN)/delctl demo

# Two at a time, a file each; what serves under load or through faults keeps the time and comes after them, alone.
SIDE_BY_SIDE := $(wildcard tests/test_*.py) $(addprefix tests/,training delctl audit client core evaluation proxy typing \
	benchmarks/test_padding.py benchmarks/test_privacy_utility.py serving/test_engine.py serving/test_seeded_sampling.py)

test: $(STAMP)  ## the tests, without those marked slow
	@status=0; \
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(SIDE_BY_SIDE) || status=1; \
	$(BIN)/python -m pytest -m "not slow" $(addprefix --ignore=,$(SIDE_BY_SIDE)) || status=1; \
	exit $$status

test-slow: $(STAMP)  ## the tests marked slow
	$(BIN)/python -m pytest -m slow --timeout 1200

check: $(STAMP)  ## style, types, layers, and what may stand in the tree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_tree.py

# The site has an environment of its own: its packages and those of the project need not fit together.
DOCS_VENV ?= .venv-docs

$(DOCS_VENV)/.installed: requirements/docs.lock
	"$${PYTHON:-python3}" -m venv --clear "$(DOCS_VENV)"
	$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check install -q --require-hashes -r requirements/docs.lock
	@touch "$@"

docs: $(DOCS_VENV)/.installed  ## the documentation site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet

format: $(STAMP)  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and everything else that make and the tools have made
	rm -rf "$(VENV)" "$(DOCS_VENV)" site tests/client_lib/proxy/node/node_modules tests/client_lib/typing/node_modules examples/typescript/node_modules examples/typescript/dist build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
