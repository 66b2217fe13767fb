# `make demo` and `make test` set everything up by themselves. Variables: PYTHON (3.11 or 3.12), VENV, ARGS.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
RUN = $(VENV)/bin
READY = $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format train bench clean

help:  ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(READY)  ## make .venv with the pinned packages (nothing to do the second time)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || { \
		echo "Paceline needs Python 3.11 or 3.12, and '$(PYTHON)' is not: name another, as in 'make setup PYTHON=python3.12'." >&2; \
		exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## the bundled model, plain and with MTP speculation, side by side
	$(RUN)/paceline demo $(ARGS)

test: $(READY)  ## all tests (ARGS="-k name" for some)
	$(RUN)/python -m pytest $(ARGS)

check: $(READY)  ## lint, format and types
	$(RUN)/ruff check src tests benchmarks tools
	$(RUN)/ruff format --check src tests benchmarks tools
	$(RUN)/mypy

format: $(READY)  ## let ruff rewrite what it can
	$(RUN)/ruff check --fix src tests benchmarks tools
	$(RUN)/ruff format src tests benchmarks tools

train: $(READY)  ## pretrain a model with its MTP modules (ARGS="--help" tells what it needs)
	$(RUN)/paceline train $(ARGS)

bench: $(READY)  ## acceptance and speed on the held-out prompts
	$(RUN)/paceline bench $(ARGS)
	$(RUN)/paceline bench compare

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
