# `make run` and `make test` need nothing but Python 3.11 and a C++ compiler: they set up .venv first. Tests that need
# Prometheus or Chromium are skipped where there is none; .ci/run installs both.
#   make run ARGS="train.num_steps=5"     make test ARGS="-k structure"     make setup PYTHON=…
BIN := .venv/bin
# Two processes, each with the files of tests that it takes (tests/two_ends.py). Debugging wants one: ARGS="-n 0".
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup --durations=10
ROOMS := cluster common configs controller data deploy duet evaluation learner observability playground reward rollout speech weight_sync
SHELL := bash

.DEFAULT_GOAL := help
.PHONY: help setup run test check bench chaos soak lint types lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/set-up ## create .venv from requirements/cpu.lock; does nothing if it is up to date
	@:

.venv/set-up: requirements/cpu.lock pyproject.toml scripts/setup.sh
	@PYTHON="$(PYTHON)" scripts/setup.sh
	@touch $@

run: setup ## train on the embedded world: `duet train`, overrides in ARGS
	@$(BIN)/duet train $(ARGS)

# A lint error does not prevent the tests; it fails the target afterwards.
test: setup ## run lint, then the tests; pytest options in ARGS
	@style=0; $(MAKE) --no-print-directory lint || style=$$?; \
	$(PYTEST) $(ARGS) || exit $$?; \
	exit $$style

check: setup ## lint, then the tests without Ray, vLLM or DeepSpeed: two minutes; pytest options in ARGS
	@style=0; $(MAKE) --no-print-directory lint || style=$$?; \
	$(PYTEST) -m "not e2e and not families and not operate" $(ARGS) || exit $$?; \
	exit $$style

bench: setup ## run the benchmarks and write bench/results.json and docs/performance.md; parts in ARGS="rollout vs_trl --repeats 5"
	@$(BIN)/python -m bench $(ARGS)

chaos: setup ## inject every kind of fault into a playground run, by a seed, and check the result; ARGS="--seed 1"
	@$(BIN)/python -m tests.chaos $(ARGS)

soak: setup ## run 200 iterations of the playground and check the memory of every process
	@$(BIN)/python -m tests.chaos.soak $(ARGS)

lint: setup ## run ruff, its formatter, and the rooms' import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo

types: setup ## run mypy
	@$(BIN)/mypy

lock: setup ## regenerate requirements/cpu.lock after a change of pyproject.toml
	@$(BIN)/python requirements/lock.py $(ARGS)

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find $(ROOMS) bench tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
