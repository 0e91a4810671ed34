# `make` prints what there is. Needed: make and Python 3.11 or later with venv (another one: make PYTHON=python3.13 …).
PYTHON ?= python3
BIN := .venv/bin
COMPOSE := deploy/docker/compose.yaml
COMPILE := $(BIN)/uv pip compile --generate-hashes --universal --no-emit-index-url --no-header --python-version 3.11 --quiet
export UV_PYTHON_DOWNLOADS := never

.DEFAULT_GOAL := help
.PHONY: help setup run test clients check sim bench soak lock

help: ## print this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile
	@echo "  .venv/bin/python -m service --help   jobs, batches, why: the command line of a service that runs"

setup: ## make .venv from requirements.lock; at once if it is up to date
	@sh deploy/local/setup.sh $(PYTHON)

run: setup ## start the whole system on this machine; Ctrl-C stops it; data stay in .local/
	@$(BIN)/python -m deploy.local.run

test: check clients ## everything but the long proofs: check, then the tests
	$(BIN)/pytest -n 2 --dist worksteal -m "not processes and not soak"
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder -m "processes and not soak" tests/integration tests/faults tests

clients: setup ## make .venv-clients: other people's clients, for the tests of our drop-in interfaces
	@sh deploy/local/clients.sh

check: setup ## format, lint, types, Dockerfile, compose file
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/hadolint deploy/docker/Dockerfile
	$(BIN)/docker-compose -f $(COMPOSE) config --quiet

sim: setup ## one simulated history again, told as it happens: make sim SEED=7
	@$(BIN)/python -m tests.sim $(or $(SEED),0)

bench: setup ## the measurements of tests/bench, printed
	@test -n "$(wildcard tests/bench/*.py)" || { echo "make bench: no measurement is written yet" >&2; exit 2; }
	@set -e; for script in $(wildcard tests/bench/*.py); do echo "== $$script"; $(BIN)/python "$$script"; done

soak: setup ## the long proofs: hours
	$(BIN)/pytest -n 0 -m soak --timeout 0

lock: setup ## pin what pyproject.toml allows, with hashes, into the lock files
	$(COMPILE) pyproject.toml --extra local --extra dev -o requirements.lock
	$(COMPILE) pyproject.toml --constraint requirements.lock -o deploy/docker/requirements.lock
	echo uv | $(COMPILE) - --no-annotate -o deploy/local/installer.lock
	$(COMPILE) tests/clients/requirements.in -o tests/clients/requirements.lock
