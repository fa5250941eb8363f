# One command per need, the same for people and for CI. `make` alone lists them.

PYTHON ?= python3
BIN := .venv/bin
SPARK := .venv-spark/bin/python
PYTEST := $(BIN)/python -m pytest
# Tests on a broker wait most of the time. Each process starts one of its own.
TOGETHER := -n 3 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup setup-peers system demo test test-unit test-broker test-rabbitmq-4 test-spark test-airflow chaos lint format constraints clean

help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## train a model on Spark from Airflow and watch it; KEEP=1 leaves it all running
	@$(BIN)/python -m stack.demo $(if $(KEEP),--keep)

# What only root can do is not asked of others; CI is root.
test: lint test-unit test-broker $(if $(filter 0,$(shell id -u)),test-rabbitmq-4) test-spark test-airflow ## lint and every tier of tests

setup: system .venv/ready .venv-spark/ready ## install what is missing and build both environments

system:
	@stack/system.sh

.venv/ready: pyproject.toml constraints.txt stack/environment.sh
	@stack/environment.sh "$(PYTHON)" .venv constraints.txt -e . --group dev

.venv-spark/ready: constraints-spark.txt stack/environment.sh
	@stack/environment.sh "$(PYTHON)" .venv-spark constraints-spark.txt pyspark scikit-learn

setup-peers: setup ## environments of the other RabbitMQ providers, which the benchmarks run beside this one
	@stack/peers.sh "$(PYTHON)"

lint: setup ## ruff, mypy, import-linter, docker files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@stack/system.sh docker-compose
	@stack/lint-docker.sh

format: setup ## let ruff write what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-unit: setup ## tests that need nothing running
	$(PYTEST) $(TOGETHER) tests/unit

test-broker: setup ## tests on a real RabbitMQ with TLS
	$(PYTEST) $(TOGETHER) tests/broker

test-rabbitmq-4: setup ## the same on RabbitMQ 4, from a Debian 13 in .rabbitmq-4 (root)
	@stack/rabbitmq4.sh build .rabbitmq-4
	RABBITMQ_ROOT=.rabbitmq-4 $(PYTEST) $(TOGETHER) tests/broker --ignore tests/broker/test_benchmarks.py

test-spark: setup ## tests on a real Spark cluster and RabbitMQ
	$(PYTEST) tests/spark

test-airflow: setup ## tests on a real Airflow, Spark and RabbitMQ, and its form in a browser
	@stack/system.sh chromium
	$(PYTEST) tests/airflow

# FAULT=part of a name, REPLAY=round, RABBITMQ_ROOT=.rabbitmq-4; the rest is said by python -m stack.chaos --help.
chaos: setup ## break one thing after another in a real stack; SEED=7 ROUNDS=20, or REPLAY=12
	$(BIN)/python -m stack.chaos $(if $(SEED),--seed $(SEED)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(REPLAY),--replay $(REPLAY)) $(if $(FAULT),--fault "$(FAULT)") $(if $(RESULTS),--results $(RESULTS))

constraints: setup ## write down the versions that are installed now
	$(BIN)/uv pip freeze --exclude-editable --python .venv > constraints.txt
	$(BIN)/uv pip freeze --exclude-editable --python .venv-spark > constraints-spark.txt

clean: ## remove both environments and what the demo and the tests left
	rm -rf .venv .venv-spark .venv-peers .venv-peers-rmq .rabbitmq-4 .demo .demo.lock .stack build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
