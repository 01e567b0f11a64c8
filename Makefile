# `make run` and `make test` need nothing but Python 3.11 and a C++ compiler: they set up .venv first. Tests that need
# Prometheus or Chromium are skipped where there is none; .ci/run installs both.
#   make run ARGS="train.num_steps=5"     make test ARGS="-k structure"     make setup PYTHON=…
BIN := .venv/bin
ROOMS := cluster common configs controller data deploy duet evaluation learner observability playground reward rollout speech weight_sync
SHELL := bash

.DEFAULT_GOAL := help
.PHONY: help setup run test bench chaos soak lint types lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/set-up ## make .venv from requirements/cpu.lock; does nothing when it is up to date
	@:

.venv/set-up: requirements/cpu.lock pyproject.toml scripts/setup.sh
	@PYTHON="$(PYTHON)" scripts/setup.sh
	@touch $@

run: setup ## train on the embedded world: `duet train`, overrides in ARGS
	@$(BIN)/duet train $(ARGS)

# A fault of style does not keep the tests from running; it does fail the target.
test: setup ## lint, then the tests; pytest options in ARGS
	@style=0; $(MAKE) --no-print-directory lint || style=$$?; \
	$(BIN)/python -m pytest $(ARGS) || exit $$?; \
	exit $$style

bench: setup ## measure, and write bench/results.json and docs/performance.md; parts in ARGS="rollout peer --repeats 5"
	@$(BIN)/python -m bench $(ARGS)

chaos: setup ## hurt a run of the playground in every way there is, by a seed, and check that it is whole; ARGS="--seed 1"
	@$(BIN)/python -m tests.chaos $(ARGS)

soak: setup ## 200 iterations of the playground, and whether anybody's memory grows
	@$(BIN)/python -m tests.chaos.soak $(ARGS)

lint: setup ## ruff, its formatter, and the rooms' import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo

types: setup ## mypy
	@$(BIN)/mypy

lock: setup ## write requirements/cpu.lock anew after a change of pyproject.toml
	@$(BIN)/python requirements/lock.py $(ARGS)

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find $(ROOMS) bench tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
