# Needs Python 3.11 or newer, make and git; everything else comes from the lock files. `make` alone lists the targets.
MIN_PYTHON := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c '$(MIN_PYTHON)' 2>/dev/null && echo $$p && break; done)
UV ?= uv
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input
TESTS ?=
SPREAD := -n 2 --dist loadfile
ARGS ?=

ifdef MAKE_TERMOUT
ifndef NO_COLOR
  CYAN := \033[36m
  RED := \033[31m
  OFF := \033[0m
endif
endif
SAY = @printf '$(CYAN)==>$(OFF) %s\n'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test check lint bridge wheel bench soak lock clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  $(CYAN)make %-7s$(OFF) %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/.penstock  ## Start the server on port 8000 (the demo model when no key is set); options in ARGS="--port 9000"
	$(SAY) "penstock serve $(ARGS)"
	@exec $(BIN)/penstock serve $(ARGS)

test: $(VENV)/.dev  ## Run the tests; TESTS="tests/test_run.py -k cancel" for some, COV=1 with the coverage gate
	$(SAY) "pytest $(TESTS)"
	@$(BIN)/python -m pytest --quiet $(if $(TESTS),,$(SPREAD)) $(if $(COV),--cov --cov-fail-under=95) $(TESTS)

check: lint test  ## Everything a change must pass: format, lint, types, tests

lint: $(VENV)/.dev  ## Check format, lint and types
	$(SAY) "ruff format, ruff check"
	@$(BIN)/ruff format --quiet --check . && $(BIN)/ruff check --quiet .
	$(SAY) "mypy"
	@$(BIN)/mypy --no-error-summary
	$(SAY) "basedpyright"
	@$(BIN)/basedpyright --pythonpath $(BIN)/python

bridge: build/bridge/.dev  ## Test the LiteLLM bridge, in an environment of its own
	$(SAY) "pytest tests/bridge"
	@build/bridge/bin/python -m pytest --quiet -W default --confcutdir tests/bridge tests/bridge

wheel: $(VENV)/.dev  ## Build the wheel and start it in an empty environment
	$(SAY) "building the wheel"
	@rm -rf dist build/wheel
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	$(SAY) "installing it into an empty environment, without extras"
	@$(BIN)/python -m venv build/wheel
	@sed -n 's/^\([a-zA-Z0-9._-]*==[^ ]*\).*/\1/p' requirements.lock > build/wheel/pins.txt
	@build/wheel/bin/python -m pip install --quiet --disable-pip-version-check --no-input -c build/wheel/pins.txt dist/*.whl
	@cd build/wheel && bin/penstock --version

bench: $(VENV)/.dev  ## Measure; ARGS="contract start" for some
	@$(BIN)/python -m benchmarks $(ARGS)

soak: $(VENV)/.dev  ## Run the long cases in full: hours, not minutes
	$(SAY) "the cases marked soak, in full"
	@PENSTOCK_SOAK=1 $(BIN)/python -m pytest -m soak $(TESTS)

LOCK = $(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --custom-compile-command "make lock" --group build $(if $(UPGRADE),--upgrade)
lock:  ## Write the lock files after a change of pyproject.toml; UPGRADE=1 takes the newest versions
	@command -v $(UV) >/dev/null || { printf '$(RED)make lock needs uv: pip install uv$(OFF)\n' >&2; exit 1; }
	$(SAY) "requirements.lock"
	@$(LOCK) --extra all -o requirements.lock
	$(SAY) "requirements-dev.lock"
	@$(LOCK) --extra all --group dev -c requirements.lock -o requirements-dev.lock
	$(SAY) "requirements-litellm.lock"
	@$(LOCK) --extra litellm --group bridge -o requirements-litellm.lock

clean:  ## Remove the environment and everything that was built
	$(SAY) "removing $(VENV), build, dist and caches"
	@rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A changed lock makes the environment anew, so that nothing stays which the lock does not name.
$(VENV)/.runtime: requirements.lock
	@test -n '$(PYTHON)' && $(PYTHON) -c '$(MIN_PYTHON)' 2>/dev/null || { printf '$(RED)%s$(OFF)\n' \
	  "Penstock needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(SAY) "making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv --clear $(VENV)
	$(SAY) "installing the packages of requirements.lock"
	@$(PIP) --require-hashes -r requirements.lock
	@touch $@

build/bridge/.dev: requirements-litellm.lock pyproject.toml
	@$(PYTHON) -m venv --clear build/bridge
	$(SAY) "installing the packages of requirements-litellm.lock"
	@build/bridge/bin/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes \
	  -r requirements-litellm.lock
	@build/bridge/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps \
	  --no-build-isolation --editable .
	@touch $@

$(VENV)/.penstock: pyproject.toml $(VENV)/.runtime
	$(SAY) "installing penstock from this folder"
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.penstock
	$(SAY) "installing the packages of requirements-dev.lock"
	@$(PIP) --require-hashes -r requirements-dev.lock
	@touch $@
