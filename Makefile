# `make demo`, `make test` and `make test-all` set everything up in .venv; they need Linux and Python 3.11 or 3.12.
# With SGLANG=0.5.23, the other version of SGLang that is served, in an environment of its own.

RIGHT_PYTHON := -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
PYTHON ?= $(shell for name in python3.11 python3.12 python3; do $$name $(RIGHT_PYTHON) && echo $$name && break; done)
SGLANG := 0.5.17
OTHER := $(if $(filter-out 0.5.17,$(SGLANG)),-$(SGLANG))
VENV := .venv$(OTHER)
LOCK := requirements$(OTHER).lock
STAMP := $(VENV)/.installed
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --no-input -qq

# Bytecode is written at first import, for the third of the modules that are imported at all, not at installation;
# an environment that forbids writing it would compile them anew at every server start.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo smollm2 chat check test test-all pages docs lock clean

demo: $(STAMP)
	$(VENV)/bin/python -m benchmarks.demo

SMOLLM2 := models/SmolLM2-135M-Instruct

smollm2: $(SMOLLM2)  # a real checkpoint with its head profile, in 3 minutes

chat: $(SMOLLM2)
	$(VENV)/bin/python -m benchmarks.chat $(SMOLLM2)

$(SMOLLM2): | $(STAMP)
	$(VENV)/bin/python -m benchmarks.real.smollm2 $@

# The tests' processes outnumber a small machine's cores: threads that wait must not spin.
test test-all: export OMP_WAIT_POLICY := PASSIVE
test: check  # every law
	$(VENV)/bin/python -m pytest tests -m "not slow"

test-all: check  # and the same laws in further cases, or at their full size
	$(VENV)/bin/python -m pytest tests

check: $(STAMP)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

pages: $(STAMP)  # what pages take from the code
	$(VENV)/bin/python tests/docs/generated.py

# The site needs none of what serves, and what serves none of the site's packages.
DOCS := .venv-docs
EXTRA = $(shell "$(PYTHON)" -c 'import shlex, tomllib; \
  print(shlex.join(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"]))')

docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict

$(DOCS)/.installed: pyproject.toml
	@test -x $(DOCS)/bin/python || "$(PYTHON)" -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip --disable-pip-version-check --no-input -qq install $(EXTRA)
	@touch $@

lock: $(STAMP)  # after packages in the environment were changed by hand
	$(VENV)/bin/python tests/packaging/lockfile.py

clean:
	rm -rf .venv .venv-0.5.23 $(DOCS) build/site

$(STAMP): $(LOCK) pyproject.toml
	@test -n "$(PYTHON)" && "$(PYTHON)" $(RIGHT_PYTHON) || { echo >&2 \
	  "make needs Python 3.11 or 3.12; install it (Debian: apt install python3.11-venv) or name it with PYTHON=."; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo >&2 \
	  "$(PYTHON) cannot make virtual environments; install its venv module (Debian: apt install python3.11-venv)."; exit 1; }
	@test -x $(VENV)/bin/python || "$(PYTHON)" -m venv $(VENV)
	@echo "Installing the locked packages into $(VENV): 10 GB, 5 to 10 minutes."
	@$(PIP) install --no-deps --no-compile -r $(LOCK)
	@$(PIP) install --no-deps --no-compile --no-build-isolation -e .
	@touch $@
