# `make demo` and `make test` are all the set-up there is. Each needs Python 3.11 or later and make.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for python in python3 python3.12 python3.13 python3.11 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
# Three tests at a time, of which one often waits, with one thread each: more would wait for each other.
TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 3 --dist worksteal
CLIP := lvspec_cli/demo/clips/clip_0001.mp4

.PHONY: help demo test test-all test-oldest check lint types types-windows format clean

help:
	@echo "make demo    install, then ask the bundled pair about a shipped clip"
	@echo "make test    install, then run the tests"
	@echo "make test-all  run those that take long, too"
	@echo "make test-oldest  install the oldest libraries that pyproject.toml allows, then run the tests with them"
	@echo "make check   format, lint, types and tests, as continuous integration runs them"
	@echo "make format  format and fix what the linter can"

$(VENV)/made:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: set PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed-dev: EXTRA := [dev]
$(VENV)/installed $(VENV)/installed-dev: pyproject.toml $(VENV)/made
	@echo "installing into $(VENV): torch and its libraries are several gigabytes"
	$(BIN)/python -m pip install --quiet --editable '.$(EXTRA)'
	touch $@

demo: $(VENV)/installed
	$(BIN)/lvspec ask $(CLIP) "Describe the video."

test: $(VENV)/installed-dev
	$(TESTS)

test-all: $(VENV)/installed-dev
	$(TESTS) -m 'not gpu'

test-oldest: BIN := .venv-oldest/bin
test-oldest:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: set PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv-oldest
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --resolution lowest-direct --editable '.[dev]'
	$(TESTS)

check: $(VENV)/installed-dev
	$(MAKE) --jobs 2 lint types types-windows
	$(TESTS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/installed-dev
	$(BIN)/mypy lvspec_cli tests docs tools

types-windows: $(VENV)/installed-dev
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 lvspec_cli

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-oldest build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
