# Every target sets up what it needs: a virtual environment with pinned packages.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export RAY_DATA_DISABLE_PROGRESS_BARS := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo test test-slow check bench parity clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Real videos beside the checkout, where there are any, in place of the demo's own drawing.
DEMO_VIDEOS := $(if $(wildcard ../shared/data/*.mp4),--videos ../shared/data)

demo: $(VENV)/.installed
	$(BIN)/maskmill demo $(DEMO_VIDEOS)

test: $(VENV)/.installed
	$(BIN)/pytest

test-slow: $(VENV)/.installed
	$(BIN)/pytest -m slow --timeout 3600

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -m 'not slow and not gpu and not cluster'

bench: $(VENV)/.installed
	$(BIN)/maskmill bench

parity: $(VENV)/.installed
	$(BIN)/python tests/scenarios.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
