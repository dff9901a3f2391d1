## make demo   set up, then run the whole loop on the sample task
## make test   set up, then run the tests
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
PYTEST_ARGS ?= -n 2 --dist loadgroup

export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: demo test lint format types docs bench setup setup-dev lock clean help
help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

# A stamp, not the interpreter: an interrupted venv has the one without pip.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Luthier needs Python 3.11 or newer; $(PYTHON) is {v.major}.{v.minor}. Try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# PyTorch first, by exact version: the platform decides whether it is a CPU or a CUDA build. The rest comes from a lock with hashes.
$(VENV)/.torch: $(VENV)/.created
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	@touch $@

$(VENV)/.runtime: requirements/runtime.txt pyproject.toml $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements/runtime.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements/dev.txt
	@touch $@

setup: $(VENV)/.runtime
setup-dev: $(VENV)/.dev

demo: setup
	$(BIN)/python examples/support/demo.py

test: setup-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

## make lint   check format, style and types
lint: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory types

format: setup-dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: setup-dev
	$(BIN)/mypy

## make docs   build the documentation site into site/
docs: setup-dev
	$(BIN)/mkdocs build --strict

## make bench  measure against peers (--quick; see benchmarks/README.md)
bench: setup-dev
	$(BIN)/python benchmarks/train.py --quick
	$(BIN)/python benchmarks/parity.py --quick
	$(BIN)/python benchmarks/intervals.py --quick
	$(BIN)/python benchmarks/tournament.py --quick

lock:
	$(PYTHON) -m pip install --quiet uv
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate --override requirements/overrides.txt pyproject.toml --extra dev --extra build -o requirements/dev.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate --override requirements/overrides.txt pyproject.toml --extra build --constraint requirements/dev.txt -o requirements/runtime.txt

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache
