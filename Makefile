# What a developer and a CI job need: `make help`. It asks for Python 3.11 or newer and for make, and for nothing else.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test lint docs clean

VENV := .venv
BIN := $(VENV)/bin
# The interpreter that .venv is made with: `make setup PYTHON=/path/to/python3.12`; without it the first that fits.
PYTHON ?=
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Stamps, so that nothing is installed twice; a change of these two files makes them out of date.
ASKED := pyproject.toml constraints.txt
RUNTIME := $(VENV)/.runtime-installed
TESTED := $(VENV)/.dev-installed
PYTEST_ARGS ?=

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' Makefile

setup: $(TESTED) ## make .venv with everything that tests and lint need

demo: $(RUNTIME) ## run pipelines/digits.yaml: train, distill, quantize, build, measure; print the table
	$(BIN)/edgekd run pipelines/digits.yaml

test: $(TESTED) ## run the whole test suite; PYTEST_ARGS="-k name" picks some
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(TESTED) ## ruff, format, types, the order of the rooms, file length
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@find edgekd -name '*.py' -exec wc -l {} + | awk '$$2 != "total" && $$1 > 400 \
	  {print $$2 ": " $$1 " lines; split it along what it does (at most 400)"; bad = 1} END {exit bad}'

docs: $(TESTED) ## write docs/reference from the sources and build the site strictly into site/
	$(BIN)/python docs/make_reference.py
	$(BIN)/zensical build --strict

clean: ## remove .venv, caches and build outputs; runs/ and the store in .edgekd/ stay
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@for python in $(or $(PYTHON),python3.11 python3 python3.12 python3.13); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  echo "making $(VENV) with $$python ($$("$$python" --version))"; \
	  "$$python" -m venv $(VENV) && exit 0; \
	  rm -rf $(VENV); exit 3; \
	done; echo "no Python 3.11 or newer found; name one: make setup PYTHON=/path/to/python3.11" >&2; exit 3

# The runtime alone: enough for `make demo`, and quicker to install.
$(RUNTIME): $(ASKED) | $(BIN)/python
	@echo "installing edgekd and its dependencies into $(VENV)"
	@$(INSTALL) -e .
	@touch $@

# tensorrt-rtx builds engines without a GPU, so the tests really build some. It has wheels for Linux on x86-64 and aarch64.
$(TESTED): $(ASKED) | $(BIN)/python
	@echo "installing edgekd, its test and lint tools and TensorRT for RTX into $(VENV)"
	@$(INSTALL) -e '.[dev,tensorrt-rtx]' || { $(INSTALL) -e '.[dev]' && \
	  echo "note: tensorrt-rtx could not be installed here (see above); the tests that build engines with it skip"; }
	@touch $(RUNTIME) $@
