# Two commands: `make demo` and `make test`.  Both set everything up first, on a fresh Debian with Python 3.11.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := demo-$(shell date +%Y%m%d-%H%M%S)
READY := $(VENV)/.ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

.PHONY: demo test fast browser lint bench docs oracles clean setup

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
	$(BIN)/ablatio train -m +sweep=first_study name=$(DEMO)-study
	$(BIN)/ablatio report runs/$(DEMO)-study

test: setup lint browser
	$(BIN)/pytest -n auto

fast: setup
	$(BIN)/pytest -n auto -m "not slow and not faults"

# The report is tested in a real browser, where there is one or root can install it.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	  echo "no chromium: the tests of the report's page are skipped"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/trainer_overhead.py

docs: setup
	$(BIN)/python -m ablatio.testing.compatibility_table > docs/compatibility.md
	$(BIN)/python -m ablatio.testing.readme_table

oracles: setup
	$(BIN)/pytest -m oracle --ablatio-record plugins/ablatio_std/oracles.json

clean:
	rm -rf $(VENV) runs
