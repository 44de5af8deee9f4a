# Everything needs Python >= 3.11, make and a package index; `make help` says what there is.
#   PYTHON       the interpreter to start from (python3)
#   TORCH_INDEX  the package index torch comes from, for another build than the default one
#   ARGS         for the command behind a target, e.g. make demo ARGS="--rounds 3 --keep"

PYTHON ?= python3
BIN := .venv/bin
# Two at a time, file by file: most of the suite waits for servers, of which every worker starts its own.
PYTEST_ARGS ?= -n 2 --dist loadfile --durations=15
export TORCH_INDEX

.DEFAULT_GOAL := help
.PHONY: help demo test lint environment clean

help:
	@echo "make demo   close the loop on your machine: real Label Studio, S3 and MLflow, nothing but Python needed"
	@echo "            (options through ARGS, e.g. make demo ARGS=\"--data FOLDER --rounds 4\"; --help lists them)"
	@echo "make test   everything that is checked: linters, types, room boundaries, and the whole test suite"
	@echo "make lint   the checks without the tests"
	@echo "make clean  remove .venv, caches and build output; Label Studio's environment stays in the user's cache folder"

demo: environment
	@$(BIN)/hardloop demo $(ARGS)

test: lint
	@$(BIN)/pytest $(PYTEST_ARGS) $(ARGS)

lint: environment
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/mypy tools/*.py benchmarks/*.py
	@$(BIN)/lint-imports

environment:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Hardloop needs Python 3.11 or newer, and $(PYTHON) is `$(PYTHON) --version 2>&1`: install one and run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -I tools/install.py

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
