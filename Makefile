# make quickstart    one whole run with the bundled model, ending in a report
# make test          what a change must pass: ruff, pyright, pytest
# make base-model    train the bundled base model again
# make benchmarks    the engine beside PEFT, half an hour on a quiet machine, a bank of 10,000 blocks, and the coverage of intervals
# make compat        the tests of what dependencies do, at both ends of the ranges in pmemx/tested_versions.py
# make test-latest   every test with today's newest releases, tested or not; it reports, and is no part of `make test`
# make lock          write constraints.txt anew: the newest releases that pyproject.toml allows
#
# All create .venv when it is missing. PYTHON chooses the interpreter (3.11 or newer); PIP_ARGS goes to pip.

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
PIP := $(BIN)/python $(INSTALL) -c constraints.txt

# Bases with quantised weights need these. They print at every import of PEFT, so only pytest finds them (pyproject.toml).
QUANTISED := bitsandbytes torchao
# What compat runs: training, attaching, generating, merging, exporting, and the bank, on other releases.
COMPAT := tests/adapter tests/base_model tests/contract/test_gate_contract.py tests/core/test_block_diff.py \
	tests/core/test_peft_folder.py tests/core/test_statistics.py tests/data tests/exchange/test_hub.py tests/export tests/gate \
	tests/library tests/lit tests/merge tests/runtime tests/store/test_bank_model.py tests/test_tested_versions.py

export HF_HUB_OFFLINE = 1
export OMP_NUM_THREADS ?= 1

.PHONY: quickstart test lint unit base-model benchmarks compat test-latest lock

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

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing pmemx and what it needs into $(VENV): once, a few minutes, mostly PyTorch ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing pmemx and what its tests need into $(VENV): once, a few minutes, mostly PyTorch ..."
	@$(PIP) -e ".[dev]"
	@$(PIP) --upgrade --no-deps --target $(VENV)/quantised $(QUANTISED)
	@touch $@ $(VENV)/.installed

# Other releases, each set in an environment of its own.

compat: $(VENV)/lowest/.installed $(VENV)/highest/.installed
	$(VENV)/lowest/bin/pytest -q -n 2 --dist loadfile -o pythonpath=. $(COMPAT)
	$(VENV)/highest/bin/pytest -q -n 2 --dist loadfile -o pythonpath=. $(COMPAT)

$(VENV)/highest/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python $(INSTALL) -c constraints.txt -e ".[postgres,tensorboard]" pytest pytest-xdist beartype hypothesis
	@touch $@

$(VENV)/lowest/.installed: pyproject.toml pmemx/tested_versions.py $(VENV)/.installed
	@$(PYTHON) -m venv --clear $(@D)
	@$(BIN)/python -c 'from pmemx.tested_versions import lowest_pins; print(lowest_pins())' > $(@D)/lowest.txt
	@$(@D)/bin/python $(INSTALL) -c $(@D)/lowest.txt -e ".[postgres,tensorboard]" pytest pytest-xdist beartype hypothesis
	@touch $@

test-latest: $(VENV)/.installed
	@$(PYTHON) -m venv $(VENV)/latest
	@$(VENV)/latest/bin/python $(INSTALL) --upgrade --upgrade-strategy eager -e ".[dev]"
	@$(VENV)/latest/bin/python $(INSTALL) --upgrade \
		$$($(BIN)/python -c 'from pmemx.tested_versions import TESTED; print(*TESTED)')
	@$(VENV)/latest/bin/python -m pip freeze --exclude-editable | diff constraints.txt - | grep '^[<>]' || true
	$(VENV)/latest/bin/pytest -q -n 2 --dist loadfile -o pythonpath=.

lock:
	@$(PYTHON) -m venv --clear $(VENV)/lock
	@$(VENV)/lock/bin/python $(INSTALL) -e ".[dev]" $(QUANTISED)
	@grep '^#' constraints.txt > $(VENV)/lock/constraints.txt
	@$(VENV)/lock/bin/python -m pip freeze --exclude-editable | grep -vE '^(nvidia|cuda|triton)' | sed 's/+.*//' >> $(VENV)/lock/constraints.txt
	@cp $(VENV)/lock/constraints.txt constraints.txt
