# SPDX-License-Identifier: Apache-2.0
# Everything that is done with this repository. Needs python3 >= 3.10, a C++17 compiler and make;
# the rest is installed into .venv from the project's own files.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# What the compiled module is made of: a change in any of these builds it again, and only then.
BUILD_INPUTS := pyproject.toml setup.py constraints.txt $(shell find csrc -type f -not -name '*.pyc' 2>/dev/null)

DEMO_OUT ?= seqrec-demo

.DEFAULT_GOAL := help
.PHONY: help demo test suite lint types format quality gates bench docs clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.train  ## the main job on built-in data: clean, train, evaluate, recommend
	$(BIN)/seqrec-fast demo --out $(DEMO_OUT)

test: lint types suite  ## style, types and the whole test suite

suite: $(VENV)/.test  ## the test suite alone (ARGS="-k name" narrows it)
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.test  ## style, import contracts, documentation links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \
	  | xargs --no-run-if-empty $(BIN)/clang-format --dry-run --Werror
	$(BIN)/lint-imports --no-cache
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site

types: $(VENV)/.test  ## mypy --strict over the package
	$(BIN)/mypy

format: $(VENV)/.test  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \
	  | xargs --no-run-if-empty $(BIN)/clang-format -i

quality: $(VENV)/.test  ## accuracy on the public data in ../shared/data (hours; see docs/quality.md)
	$(BIN)/python -m benchmarks.quality $(ARGS)

gates: $(VENV)/.test  ## compile the GPU kernels for every target, renew the tables (see docs/gpu.md)
	$(BIN)/python -m tests.gpu.gates $(ARGS)

bench: $(VENV)/.bench  ## speed, beside the rivals that are installed
	$(BIN)/python -m pytest benchmarks --benchmark-enable --benchmark-only $(ARGS)

docs: $(VENV)/.test  ## serve the documentation on http://127.0.0.1:8000
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

clean:  ## remove what was built, the environment too
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	  .import_linter_cache .benchmarks
	find seqrec_fast -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ------------------------------------------------------------------ the environment
# One environment, three steps: the package with [train] (all that the demo needs), the tools of the
# tests on top, the rivals of the benchmarks on top. The package itself is built in the first alone.

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "make: $(PYTHON) is missing or older than 3.10; give another: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "make: $(PYTHON) has no venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; \
	  exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { \
	  echo "make: no C++ compiler found; on Debian or Ubuntu: apt-get install g++" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@touch $@

$(VENV)/.train: $(BUILD_INPUTS) | $(VENV)/.created
	@echo "installing the package and what training needs (a few minutes the first time)"
	@$(PIP) --editable '.[train]'
	@touch $@

# The requirements of an extra, read from the installed package, so that it is not built again.
EXTRA = $(BIN)/python -c 'import sys, importlib.metadata as metadata; \
  print(*(r.replace("extra == \"%s\"" % extra, "python_version >= \"3\"") for extra in sys.argv[1:] \
  for r in metadata.requires("seqrec-fast") if "extra == \"%s\"" % extra in r), sep="\n")'

# The CUDA build of torch has brought its own; beside one for the CPU this one runs and compiles the
# kernels. It can be no constraint, as no other than its own goes with the CUDA build.
TRITON = triton==3.9.0; python_version >= "3.11" and platform_machine == "x86_64" \
  and sys_platform == "linux"

$(VENV)/.test: $(VENV)/.train
	@echo "installing what the tests need"
	@$(EXTRA) serve test dev docs > $(VENV)/test.txt
	@$(BIN)/python -c 'import triton' 2>/dev/null || echo '$(TRITON)' >> $(VENV)/test.txt
	@$(PIP) -r $(VENV)/test.txt
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	@echo "installing what the benchmarks need"
	@$(EXTRA) bench > $(VENV)/bench.txt
	@$(PIP) -r $(VENV)/bench.txt
	@touch $@
