# make quickstart    one whole run with the bundled model, ending in a report
# make test          what a change must pass: ruff, pyright, pytest
# make base-model    train the bundled base model again
# make benchmarks    the engine beside PEFT, half an hour on a quiet machine, a bank of 10,000 blocks, and the coverage of intervals
#
# All create .venv when it is missing. PYTHON chooses the interpreter (3.11 or newer); PIP_ARGS goes to pip.

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

# Bases with quantised weights need these. They print at every import of PEFT, so only pytest finds them (pyproject.toml).
QUANTISED := bitsandbytes torchao

export HF_HUB_OFFLINE = 1
export OMP_NUM_THREADS ?= 1

.PHONY: quickstart test lint unit base-model benchmarks

quickstart: $(VENV)/.installed
	$(BIN)/pmemx run experiments=quickstart

base-model: $(VENV)/.installed
	$(BIN)/pmemx run experiments=base_model

benchmarks: $(VENV)/.installed
	$(BIN)/python -m experiments.benchmarks.engine
	$(BIN)/python -m experiments.benchmarks.bank
	$(BIN)/python -m experiments.benchmarks.coverage

test: lint unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: $(VENV)/.installed-dev
	$(BIN)/pytest -q -n 2 --dist loadfile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing pmemx and what it needs into $(VENV): once, a few minutes, mostly PyTorch ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing pmemx and what its tests need into $(VENV): once, a few minutes, mostly PyTorch ..."
	@$(PIP) -e ".[dev]"
	@$(PIP) --upgrade --no-deps --target $(VENV)/quantised $(QUANTISED)
	@touch $@ $(VENV)/.installed
