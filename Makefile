# make demo | test | lint: each makes .venv and installs what it needs the first time. PYTHON=python3.12 picks another one.
PYTHON ?= python3
BIN := .venv/bin
CORE := .venv/.installed-core
DEV := .venv/.installed-dev
PIP := $(BIN)/python -m pip install -qq --no-input --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint format docs install dev clean

demo: $(CORE)
	$(BIN)/python -m dpo_lab experiment=demo overwrite=true

test: $(DEV)
	$(BIN)/python -m pytest -q -n 2

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs:
	$(PYTHON) docs/options.py

install: $(CORE)

dev: $(DEV)

# The stamps are older than pyproject.toml or constraints.txt when those change: then pip runs again.
$(CORE): pyproject.toml constraints.txt
	@echo "Installing dpo_lab into .venv (first time only, about 3 minutes)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@$(PIP) -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt
	@echo "Installing dpo_lab and its development tools into .venv (first time only, about 4 minutes)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@$(PIP) -e '.[dev]'
	@touch $(CORE) $@

clean:
	rm -rf build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
