# make setup    the environment in .venv, and nothing else
# make demo     the whole story on a CPU in minutes; run it again to continue or to see that it is done
# make test     every test;  make check: formatting, lint, types
# make fuzz     100,000 damaged and made-up files for everything that reads files (INPUTS=…, SEED=…); what fails is kept in runs/fuzz
# make bench    the benchmarks that need no GPU, in an hour on two quiet cores: benchmarks/RESULTS.md;  ONLY="packing chaos": some of them
# make study    the tiny study, hours on two cores: 162 runs, then docs/study.md; run it again to go on
# make docs     the guides and API pages as a site in site/, in an environment of its own
#
# make wheelhouse        on a machine with internet: all wheels for one without, in wheelhouse/ (PYTHON_VERSION=3.11
#                        PLATFORM=manylinux_2_28_x86_64 say for which; TORCH_INDEX=URL for another build of torch)
# make install-offline   on that one: the environment in .venv, from wheelhouse/

PYTHON ?= python3
# Outside of the environment, which PATH names first below and which may be another machine's.
override PYTHON := $(or $(shell command -v $(PYTHON)),$(PYTHON))
VENV := .venv
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

WHEELHOUSE ?= wheelhouse
PYTHON_VERSION ?= 3.11
PLATFORM ?= manylinux_2_28_x86_64
TORCH_INDEX ?=
# Settings of pip that name other places are not followed.
PIP_OFFLINE := PIP_CONFIG_FILE=/dev/null $(BIN)/python -m pip --isolated install --quiet --disable-pip-version-check --no-index

.PHONY: help setup demo demo-clean test check format fuzz bench study docs wheelhouse install-offline

help:
	@sed -n '/^#/!q; s/^#[ ]\{0,1\}//p' Makefile

setup: $(VENV)/.complete

$(VENV)/.complete: requirements.lock pyproject.toml
	@$(PYTHON) tools/can_install.py
	$(PYTHON) tools/environment.py $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Its pip is in a folder of its own: .venv would be copied to the other machine with the checkout.
wheelhouse:
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && trap 'exit 130' INT TERM && $(PYTHON) -m venv "$$tools" && \
	"$$tools/bin/python" tools/wheelhouse.py collect $(WHEELHOUSE) --python-version $(PYTHON_VERSION) \
		--platform $(PLATFORM) --torch-index "$(TORCH_INDEX)"

install-offline:
	@$(PYTHON) tools/can_install.py
	$(PYTHON) tools/environment.py $(VENV)
	@$(BIN)/python tools/wheelhouse.py check $(WHEELHOUSE)
	@rm -f $(VENV)/.complete
	$(PIP_OFFLINE) --find-links $(WHEELHOUSE) -r requirements.lock
	$(PIP_OFFLINE) --no-deps --no-build-isolation --editable .
	@touch $(VENV)/.complete

demo: setup
	@$(BIN)/python -m launch demo

demo-clean:
	rm -rf runs/demo

test: setup
	$(BIN)/python -m pytest

INPUTS ?= 100000
SEED ?= 1

fuzz: setup
	$(BIN)/python -m tests.fuzz --inputs $(INPUTS) --seed $(SEED)

bench: setup
	@$(BIN)/python -m benchmarks $(ONLY)

study: setup
	@$(BIN)/python -m launch study --out docs/study.md
	@cp runs/study_tiny/collected/index.html docs/study/runs.html
	@$(BIN)/python tools/study_records.py runs/study_tiny docs/study/records.tar.xz

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

DOCS := .venv-docs

# It reads the sources without importing them, so that it needs nothing of .venv.
docs: $(DOCS)/.complete
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict
	@echo "open site/index.html"

$(DOCS)/.complete: requirements-docs.lock
	$(PYTHON) tools/environment.py $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.lock
	@touch $@

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
