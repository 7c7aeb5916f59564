# Each target sets up what it needs. Only Python 3.11+ (with venv) and make are expected.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.stamp
DEV_STAMP := $(VENV)/.stamp-dev

.PHONY: setup demo test lint bench stress gallery clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt "torch==2.13.0"
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable .
	@touch $(STAMP)

$(DEV_STAMP): $(STAMP)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(DEV_STAMP)

demo: $(STAMP)
	$(VENV)/bin/hoofprint run experiments/laptop.yaml

# What tests need besides Python: installed where this may be done, else said.
INSTALL := command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -qy

test: $(DEV_STAMP)
	@command -v cc >/dev/null || ($(INSTALL) gcc libc6-dev) \
	  || echo "no C compiler: the NVML stand-in tests will be skipped; install one with: sudo apt-get install gcc libc6-dev"
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || ($(INSTALL) chromium) \
	  || echo "no browser: the tests of the pages in one will be skipped; install it with: sudo apt-get install chromium"
	$(VENV)/bin/pytest

stress: $(DEV_STAMP)
	$(VENV)/bin/pytest -m stress

gallery: $(DEV_STAMP)
	$(VENV)/bin/python docs/gallery.py

lint: $(DEV_STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(DEV_STAMP)
	$(VENV)/bin/python benchmarks/model_speed.py
	$(VENV)/bin/python benchmarks/training/run.py
	$(VENV)/bin/python benchmarks/overhead.py
	$(VENV)/bin/python benchmarks/overhead.py --checkpoints 75 --turn-s 30
	$(VENV)/bin/python benchmarks/metering/run.py
	$(VENV)/bin/python benchmarks/metering/scale.py
	$(VENV)/bin/python benchmarks/resilience/run.py
	$(VENV)/bin/python benchmarks/dashboard/run.py

clean:
	rm -rf $(VENV) runs .cache
