# Every target sets up what it needs in .venv; only Python 3.11 or newer, git and make are assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo demo-distill test slow lint docs bench clean

demo: $(VENV)/.demo
	$(BIN)/xcite train digits

demo-distill: $(VENV)/.demo
	$(BIN)/python benchmarks/distilled_digits.py

# Workers share the cores, so threads that wait must sleep, not spin. A worker that crashes is not
# replaced: that can leave the others waiting for ever.
test: $(VENV)/.dev
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n auto --dist loadfile --max-worker-restart 0

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build
	@echo docs/_build/index.html

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) build dist docs/_build .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e '.[paddle,demo]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e '.[paddle,torch,deploy,serve,demo,tensorboard,fast,fonts,formats,parquet,teacher,dev]'
	@touch $@
