# make demo   set up .venv, install, run the whole pipeline
# make test   set up .venv, install, run the tests
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# without compiled files every worker and every command would compile torch, transformers and diffusers anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo demo-quick test test-slow lint types docs benchmarks clean

help:
	@echo "make demo        set up $(VENV) and run the whole pipeline on generated clips (3 to 7 minutes)"
	@echo "make demo-quick  the same with fewer clips and steps (about 90 seconds)"
	@echo "make test        set up $(VENV) and run the tests (about 12 minutes on 2 cores)"
	@echo "make test-slow   the slow tests: crashes, faults of stores, import situations, models that overfit (about 28 minutes)"
	@echo "make lint types  run ruff and mypy"
	@echo "make docs        build the documentation in docs/_build/html (about 30 seconds)"
	@echo "make benchmarks  compare speed with named alternatives (tests/benchmarks/README.md)"

install: $(VENV)/.installed

# uv downloads and links packages several times as fast as pip; pip brings uv, so Python and make are enough
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
		|| { echo "OpenUni needs Python 3.11 or 3.12, found $$($(PYTHON) --version). Give one: make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[test,docs]'
	touch $@

demo: install
	$(BIN)/openuni demo

demo-quick: install
	$(BIN)/openuni demo --quick

# both test steps: two processes, each test file whole in one of them, in the order of tests/conftest.py
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15

test-slow: install
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder --durations=15

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install
	$(BIN)/mypy

# every warning is an error; nothing is downloaded
docs: install
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder html docs docs/_build/html
	@echo "docs/_build/html/index.html"

benchmarks: install
	$(BIN)/python -m tests.benchmarks.pipeline
	$(BIN)/python -m tests.benchmarks.manifests

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info openuni-demo docs/_build docs/reference/generated
