# Each target works on a fresh clone with nothing but Python 3.11 or 3.12 on the PATH.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c requirements.lock
JOBS ?= 2

.PHONY: demo test test-slow check check-fast setup lock clean
.DEFAULT_GOAL := demo

demo: .venv/.doctor
	$(BIN)/egoarm demo

test: .venv/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

test-slow: .venv/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m slow

check: check-fast
	$(BIN)/basedpyright

check-fast: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

setup: .venv/.dev

lock: .venv/.dev
	@{ sed -n '/^#/p' requirements.lock; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf .venv build *.egg-info

.venv/.python:
	@test -n "$(PYTHON)" || { echo "egoarm needs Python 3.11 or 3.12 on the PATH; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade setuptools wheel
	@touch $@

.venv/.robots: .venv/.python pyproject.toml requirements.lock
	@echo "installing the pinned packages (a few minutes the first time)"
	$(PIP) --no-build-isolation -e ".[robots]"
	@touch $@

.venv/.doctor: .venv/.robots
	$(BIN)/egoarm doctor
	@touch $@

.venv/.dev: .venv/.robots
	$(PIP) --no-build-isolation -e ".[robots,annotate,cluster,lerobot,dev]"
	@touch $@
