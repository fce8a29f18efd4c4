# Every target sets up what it needs: a virtual environment with pinned packages.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export RAY_DATA_DISABLE_PROGRESS_BARS := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo browser test test-slow test-gpu check bench bench-gpu parity clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Real videos beside the checkout, where there are any, in place of the demo's own drawing.
DEMO_VIDEOS := $(if $(wildcard ../shared/data/*.mp4),--videos ../shared/data)

demo: $(VENV)/.installed
	$(BIN)/maskmill demo $(DEMO_VIDEOS)

# The page's tests want a browser; where none is and none can be had, they skip and say so.
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable
APT := timeout 300 apt-get -qq -o Acquire::http::Timeout=20 -o Acquire::Retries=1

browser:
	@for name in $(BROWSERS); do ! command -v $$name >/dev/null || exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing chromium for the tests of the page"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  $(APT) update >/dev/null 2>&1; \
	  $(APT) install -y --no-install-recommends chromium >/dev/null 2>&1 || echo "no chromium to be had"; \
	fi

test: $(VENV)/.installed browser
	$(BIN)/pytest

test-slow: $(VENV)/.installed browser
	$(BIN)/pytest -m slow --timeout 3600

test-gpu: $(VENV)/.installed
	$(BIN)/pytest -m gpu

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -m 'not slow and not gpu and not cluster'

bench: $(VENV)/.installed
	$(BIN)/maskmill bench

# META: a checkout of github.com/facebookresearch/sam2, to measure that too.
bench-gpu: $(VENV)/.installed
	$(BIN)/maskmill bench --config configs/bench-gpu.yaml $(if $(META),--set meta=$(META) --set meta_compiled=true)

parity: $(VENV)/.installed
	$(BIN)/python tests/scenarios.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
