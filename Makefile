# `make demo` and `make test`: both set up what they need, on a fresh Debian with Python 3.11.
#
#   make demo      a model, a study and its report          (installs the core alone)
#   make fast      the unit tests, two minutes              (this and what follows installs all that is tested)
#   make test      lint and tests, the long matrices sampled
#   make test-all  every test, some hours; the results are kept in tests/results/all.json (helpers/results.py)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := demo-$(shell date +%Y%m%d-%H%M%S)
STAMP := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
CORE := $(VENV)/.core-$(STAMP)
READY := $(VENV)/.ready-$(STAMP)
TESTS := $(BIN)/pytest -n auto --dist worksteal

# Tests start many processes: each would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo setup test usual test-all fast programs lint bench docs oracles clean

# Python compiles a module when it is first imported: to compile the thousands of these packages takes a third of the
# time.  The others are compiled by all cores, which pip does by one.
NOT_COMPILED := /(torch|transformers|sympy|ray|mlflow|databricks|deepspeed|sklearn|tests)/
PIP := $(BIN)/pip install --quiet --no-compile -c constraints.txt

$(CORE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	rm -f $(VENV)/.core-*
	touch $@

setup: $(READY)

# The core is not installed before it: pip would look at each of its packages twice.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[dev]"
	-$(BIN)/python -m compileall -q -j 0 -x '$(NOT_COMPILED)' $(VENV)/lib >/dev/null 2>&1
	rm -f $(VENV)/.ready-* $(VENV)/.core-*
	touch $(CORE) $@

demo: $(CORE)
	$(BIN)/ablatio train experiment=demo name=$(DEMO)
	$(BIN)/ablatio generate runs/$(DEMO) "The people of the United States" --tokens 120
	$(BIN)/ablatio train -m +sweep=first_study name=$(DEMO)-study
	$(BIN)/ablatio report runs/$(DEMO)-study

test:
	$(MAKE) -j2 setup programs
	$(MAKE) -j2 lint usual

usual: setup
	$(TESTS) --select usual

test-all: setup lint programs
	$(TESTS) --select all --results tests/results/all.json -o faulthandler_timeout=3600

fast: setup
	$(TESTS) --select fast

# The report is tested in a real browser, and launcher=slurm with Slurm, where they are there or root can install them.
programs:
	@missing="$$(command -v chromium chromium-browser google-chrome >/dev/null || echo chromium) \
	  $$(command -v slurmctld >/dev/null || echo slurmctld slurmd slurm-client)"; \
	[ -z "$$(echo $$missing)" ] || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq $$missing >/dev/null; } || \
	  echo "tests are skipped that need" $$missing

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/trainer_overhead.py

# Writes the site to site/; the generated pages are made first, and a warning is an error (mkdocs.yml).
docs: setup
	$(BIN)/python -m ablatio.testing.compatibility_table > docs/compatibility.md
	$(BIN)/python -m ablatio.testing.readme_table
	$(BIN)/python -m ablatio.testing.reference docs/plugins --contracts
	$(BIN)/python -m ablatio.testing.reference docs/reference
	$(BIN)/python docs/tools/pictures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

oracles: setup
	$(BIN)/pytest -m oracle --ablatio-record plugins/ablatio_std/oracles.json

clean:
	rm -rf $(VENV) runs
