# Two commands: `make demo` and `make test`.  Both set everything up first, on a fresh Debian with Python 3.11.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := demo-$(shell date +%Y%m%d-%H%M%S)
READY := $(VENV)/.ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

.PHONY: demo test fast lint bench docs oracles clean setup

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	rm -f $(VENV)/.ready-*
	touch $@

demo: setup
	$(BIN)/ablatio train name=$(DEMO)
	$(BIN)/ablatio generate runs/$(DEMO) "The people of the United States" --tokens 120
	$(BIN)/ablatio train -m name=$(DEMO)-sweep size=tiny train.steps=200 norm=layernorm,rmsnorm position=rope,alibi,none

test: setup lint
	$(BIN)/pytest -n auto

fast: setup
	$(BIN)/pytest -n auto -m "not slow and not faults"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/trainer_overhead.py

docs: setup
	$(BIN)/python -m ablatio.testing.compatibility > docs/compatibility.md

oracles: setup
	$(BIN)/pytest -m oracle --ablatio-record plugins/ablatio_std/oracles.json

clean:
	rm -rf $(VENV) runs
