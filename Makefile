# make run | test | lint | bench | clean. Each sets up what it needs; a second run starts at once.
# Settings: STUDIES=folder HOST=127.0.0.1 PORT=8000 CONF="--conf key value ..." PYTHON=python3.12 WORKERS=2

SHELL := /bin/bash
# Packages of Python and of npm are fetched at the same time.
MAKEFLAGS += --jobs=2
.DEFAULT_GOAL := help

# A python3.N on PATH may be a shim without an interpreter behind it, so each is tried.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STUDIES ?= demo/images
HOST ?= 127.0.0.1
PORT ?= 8000
CONF ?=
# Half of a test's time is waiting for a server: two processes of one thread each use two cores best.
WORKERS ?= 2

.PHONY: help run test lint format bench clean

help:
	@sed -n '1,2p' Makefile

run: .venv/installed web/packages/fetched $(if $(filter demo/images,$(STUDIES)),demo/images)
	$(BIN)/nextslice serve --studies $(STUDIES) --host $(HOST) --port $(PORT) $(CONF)

# What the first process compiled, the dozens that tests start need not compile again.
test: .venv/developer web/packages/fetched
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive \
		$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: .venv/developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/developer
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/developer
	$(BIN)/python -m bench.speed $(ARGS)

demo/images: | .venv/installed
	$(BIN)/nextslice demo-data demo

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "NextSlice needs Python 3.11 or 3.12 on PATH (or: make PYTHON=/path/to/python3.11)."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "Python has no venv module; Debian keeps it in a package of its own."; \
		test "$$(id -u)" = 0 || { echo "Run: sudo apt-get install $(notdir $(PYTHON))-venv"; exit 1; }; \
		apt-get update && apt-get install -y $(notdir $(PYTHON))-venv; }
	$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --upgrade pip || echo "Going on with the pip that came with Python: slower."

DESCRIBED := requirements.txt pyproject.toml $(wildcard third_party/*/pyproject.toml third_party/*/*/*.py)
# pip compiles on one core; here all cores do. Left out are large packages that little or nothing is used of; what cannot be
# compiled is nobody's.
# Goals that run at the same time install one after the other.
PIP := flock .venv $(BIN)/python -m pip install --disable-pip-version-check --no-compile
COMPILE := @echo "Compiling what was installed ..."; $(BIN)/python -m compileall -q -j 0 -x '/(tests?|testing|itk|mlflow|databricks|mypyc?|timm|pip|pygments|fontTools)/' .venv/lib > .venv/compiled.log 2>&1 || true

.venv/installed: $(DESCRIBED) | .venv/bin/python
	$(PIP) -r requirements.txt
	$(COMPILE)
	@touch $@

.venv/developer: $(DESCRIBED) | .venv/bin/python
	$(PIP) -r requirements.txt -e '.[dev]'
	$(COMPILE)
	@touch .venv/installed $@

# OHIF and NiiVue, for the pages in the browser. Without npm or a network the server runs, and those pages say what is missing.
web/packages/fetched: web/fetch.py | .venv/bin/python
	@if $(BIN)/python -m web.fetch; then touch $@; fi

clean:
	rm -rf .venv demo web/packages .mypy_cache .ruff_cache .pytest_cache
