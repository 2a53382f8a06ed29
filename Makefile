# `make demo` and `make test` on a fresh machine. CONSTRAINTS pins versions (CI sets it); PYTHON picks the interpreter.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?=
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
CONSTRAIN = $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
PYTEST_ARGS ?=
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test lint types unit adapters clean

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
