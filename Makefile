# Everything here installs what it needs into $(VENV) first. A machine needs make and Python >= 3.11, no more.

VENV      ?= .venv
# The first of these that is new enough is used. `make demo PYTHON=/path/to/python` uses that one.
PYTHON    ?= python3.11 python3 python3.12 python3.13 python3.14
# The figure of `-n`: how many processes run the tests.
TEST_JOBS ?= 2
# More for pytest, e.g. `make test PYTEST_ARGS="-k switching -x"`.
PYTEST_ARGS ?=

BIN       := $(VENV)/bin
PIP       := $(BIN)/python -m pip --disable-pip-version-check
SOURCES   := src tests $(wildcard examples benchmarks experiments)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

.PHONY: help
help:  ## This list
	@echo 'switchlora: pre-train language models with SwitchLoRA'
	@echo
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo 'Each installs what it needs into $(VENV) first; nothing is installed outside it.'

.PHONY: demo
demo: $(VENV)/.stamp-run  ## Pre-train a small LLaMA on real text in a few minutes (results in runs/demo)
	@$(BIN)/switchlora pretrain --config configs/demo.yaml --output runs/demo
	@echo
	@echo 'The demo is in runs/demo:'
	@echo '  model.safetensors, config.json   a dense checkpoint for AutoModelForCausalLM.from_pretrained("runs/demo")'
	@echo '  result.json                      validation perplexity and everything measured'
	@echo '  loss.png                         the loss curve'
	@echo '  sample.txt                       text that the model wrote'
	@echo '  README.md                        the model card: command, configuration, curve'
	@echo
	@echo 'After so short a training it goes on like this:'
	@echo
	@awk '/^--- prompt: def/ { on = 1; next } /^--- / { on = 0 } on { print "    " $$0 }' runs/demo/sample.txt

.PHONY: test
test: $(VENV)/.stamp-dev  ## Run all tests (TEST_JOBS=2 processes, PYTEST_ARGS="-k name" for some)
	@$(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal $(PYTEST_ARGS)

.PHONY: soak
soak: $(VENV)/.stamp-dev  ## Kill training of two processes 220 times, and check that nothing is lost (at most 20 minutes)
	@timeout --foreground 1200 $(BIN)/python -m tests.soak $(SOAK_ARGS)

.PHONY: lint
lint: $(VENV)/.stamp-dev  ## Check style, format and types, and change nothing
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy

.PHONY: format
format: $(VENV)/.stamp-dev  ## Put imports and layout in order
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

.PHONY: install
install: $(VENV)/.stamp-dev  ## Only install, with all that developers need

.PHONY: clean
clean:  ## Remove .venv and what the tools cached; results in runs/ stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- installation: a stamp per set of packages, so that a second call is immediate and a changed pin reinstalls ---

$(BIN)/python:
	@set -e; chosen=; \
	for candidate in $(PYTHON); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    chosen="$$candidate"; break; \
	  fi; \
	done; \
	if [ -z "$$chosen" ]; then \
	  echo 'error: no Python >= 3.11 among: $(PYTHON)' >&2; \
	  echo '       install one (Debian, Ubuntu: apt-get install python3 python3-venv)' >&2; \
	  echo '       or name yours: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; \
	fi; \
	if ! "$$chosen" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "error: $$chosen cannot make virtual environments" >&2; \
	  echo '       install its venv package (Debian, Ubuntu: apt-get install python3-venv)' >&2; exit 1; \
	fi; \
	echo "creating $(VENV) with $$("$$chosen" --version)"; \
	"$$chosen" -m venv $(VENV)

define install
	@echo 'installing $(1) into $(VENV) (once; minutes on a slow connection, torch is large) ...'
	@$(PIP) install -qq --constraint constraints.txt --editable '$(2)'
	@echo 'installed.'
endef

$(VENV)/.stamp-run: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,switchlora,.)
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,switchlora and the tools for its tests,.[dev])
	@touch $@ $(VENV)/.stamp-run
