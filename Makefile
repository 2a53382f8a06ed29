# `make demo` and `make test` on a fresh machine. CONSTRAINTS pins versions (CI sets it); PYTHON picks the interpreter.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?=
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
CONSTRAIN = $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
PYTEST_ARGS ?=
export HF_HUB_OFFLINE ?= 1

# The lowest transformers that pyproject.toml allows, and the newest; the tests that each is tried with.
ALLOWED := $(shell sed -n 's/^ *"\(transformers>=[^"]*\)",/\1/p' pyproject.toml)
lowest = $(shell echo "$(ALLOWED)" | sed 's/>=\([0-9.]*\).*/==\1.*/')
newest = $(ALLOWED)
FAST_TESTS = tests/model tests/encoding tests/ranking/test_reranker.py

.PHONY: demo test lint types unit adapters versions clean

demo: $(VENV)/.demo
	$(VENV)/bin/python examples/demo.py --out out

test: lint types unit adapters

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.dev
	$(VENV)/bin/mypy

unit: $(VENV)/.dev
	$(VENV)/bin/pytest --cov $(PYTEST_ARGS)

adapters: $(VENV)/.dev
	cd integrations/llama-index-postprocessor-mmrh-rerank && $(abspath $(VENV))/bin/pytest
	cd integrations/langchain-mmrh && $(abspath $(VENV))/bin/pytest

versions: version-lowest version-newest

version-%: $(VENV)/.dev
	$(PIP) install -q --no-deps --upgrade --target $(VENV)/transformers-$* "$($*)"
	PYTHONPATH=$(abspath $(VENV))/transformers-$* $(VENV)/bin/python -m pytest -q $(PYTEST_ARGS) $(FAST_TESTS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(PIP) install -q $(CONSTRAIN) -e .
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(PIP) install -q $(CONSTRAIN) -e ".[dev]" \
		-e integrations/llama-index-postprocessor-mmrh-rerank -e integrations/langchain-mmrh
	touch $@

clean:
	rm -rf $(VENV) out
