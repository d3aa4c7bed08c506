# Everything a person does with this clone; `make help` lists it.
SHELL := bash
MODEL ?= wine
PYTHON ?=
VENV := .venv$(if $(PYTHON),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
SMALL := -n 2 --dist loadfile --no-loadscope-reorder --durations=25 -m "not prove and not bench"
.DEFAULT_GOAL := help
.PHONY: help install run up rehearse deployments test coverage prove check format bench bench-serve bench-judge bench-batch \
	bench-drift bench-stream bench-dask lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

install: ## Set up .venv from the lock (PYTHON=3.12 chooses an interpreter)
	@.ci/install $(VENV) $(PYTHON)

run: install ## Run the whole life of one model (MODEL=heart_disease does another)
	@$(BIN)/gauntlet run $(MODEL)

up: install ## Start Prefect server, worker and MLflow UI on this clone's state; Ctrl-C ends them
	@$(BIN)/python -m flows.up

rehearse: install ## Try the cloud stack with every back end on this machine's loopback (minutes; needs .ci/run's servers)
	@$(BIN)/python -m flows.rehearse

deployments: install ## Write prefect.yaml from models/*.yaml
	@$(BIN)/python -m flows.deployments

test: install ## Show every guarantee once, small (15 minutes at most)
	@$(BIN)/python -m pytest $(SMALL)

coverage: install ## The same, with the share of lines that the tests' own processes reach
	@$(BIN)/python -m pytest $(SMALL) --cov --cov-report=term:skip-covered

prove: install ## Run the counts that issues name and write docs/proof.md
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=25 -m prove --proof=docs/proof.md --timeout=1800

check: install ## Lint, types, room contracts
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

format: install ## Format and fix what ruff can
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: install ## Measure: tables and JSON, ratios and medians in one run
	@failed=; for each in benchmarks/[a-z]*.py; do name=$$(basename $$each .py); \
		$(BIN)/python -m benchmarks.$$name || failed="$$failed $$name"; done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

bench-serve: install ## Measure the service against MLflow's and an echo (needs wrk; 10 minutes)
	@$(BIN)/python -m benchmarks.serve

bench-judge: install ## Measure judging a million scored rows (2 minutes)
	@$(BIN)/python -m benchmarks.judge

bench-batch: install ## Measure batch scoring of a million rows, logged (1 minute)
	@$(BIN)/python -m benchmarks.batch

bench-drift: install ## Measure drift on a million rows against Evidently on the raw frames (2 minutes)
	@$(BIN)/python -m benchmarks.drift

bench-dask: install ## Train on ten million rows with two Dask workers of 2 GiB (30 minutes)
	@$(BIN)/python -m benchmarks.dask_rows

bench-stream: install ## Watch two years of bike sharing and draw docs/bike_sharing.png (3 minutes)
	@$(BIN)/python -m benchmarks.stream

lock: install ## Resolve requirements.lock anew (versions and hashes, no index address)
	@$(BIN)/uv pip compile pyproject.toml --group dev --universal --generate-hashes --python-version 3.11 \
		--no-emit-package nvidia-nccl-cu12 --no-header --no-annotate --quiet -o requirements.lock

clean: ## Remove .venv, state and caches
	rm -rf .venv .venv-* .gauntlet .mypy_cache .ruff_cache .import_linter_cache .coverage
