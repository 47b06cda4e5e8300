# Everything here also works by hand: see "Without make" in README.md.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
OUT ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint types check bench study clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# The stamp is written last, so an interrupted installation is taken up again.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.11 install" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about 2.2 GB, a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

install: $(READY)  ## create .venv and install everything

demo: $(READY)  ## the whole road on two cores; VIDEOS=folder [ANNOTATIONS=file.csv] [OUT=folder] for your own
	@$(BIN)/python launch/demo.py --out '$(OUT)' $(if $(VIDEOS),--videos '$(VIDEOS)') $(if $(ANNOTATIONS),--annotations '$(ANNOTATIONS)')

test: $(READY)  ## all tests (twelve minutes on two cores)
	@$(BIN)/python -m pytest -q -m 'not slow' -n 2

test-slow: $(READY)  ## the tests that take minutes each
	@$(BIN)/python -m pytest -q -m slow

lint: $(READY)  ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)  ## pyright on product code
	@$(BIN)/basedpyright --level error

check: lint types test  ## what CI runs

bench: $(READY)  ## all measurements of docs/measured.md, as rows in benchmarks/results (an hour)
	@$(BIN)/python -m benchmarks.train_step
	@$(BIN)/python -m benchmarks.attention
	@$(BIN)/python -m benchmarks.plot_attention
	@$(BIN)/python -m benchmarks.loader
	@$(BIN)/python -m benchmarks.loader_start
	@$(BIN)/python -m benchmarks.loader_memory
	@$(BIN)/python -m benchmarks.rendered_faces

study: $(READY)  ## docs/study.md anew: networks on micro-expressions of rendered people (hours)
	@$(BIN)/python -m benchmarks.recognition
	@$(BIN)/python -m benchmarks.plot_recognition

clean:  ## remove what the demo made (runs/demo or OUT)
	@rm -rf '$(OUT)'
