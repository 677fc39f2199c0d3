# aimass: `make help` lists every target. Needs Python 3.11 or newer, bash and make; everything else is installed.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The interpreter that makes the virtual environment: the first of these that is new enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
  $$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
# cpu or cuda: which ONNX Runtime package to install. The two must never be installed together.
RUNTIME ?= cpu
# Where exported models live. Set it in the environment or behind make; programs read it there too.
AIMASS_STORE ?= models
MODELS ?= smollm2-135m-instruct all-minilm-l6-v2 whisper-tiny.en silero-vad hibari-heart
# What `make bench` runs: all, or one of the parts that docs/benchmarking.md lists.
BENCH ?= all
PYTEST_ARGS ?=
BENCH_ARGS ?=

STAMPS := $(VENV)/.stamps
MEMBERS := clients/python services/kernels services/serving services/decoding services/generation services/encoder services/speech exporters
PYPROJECTS := $(MEMBERS:%=%/pyproject.toml)
NATIVE := services/kernels/setup.py $(wildcard services/kernels/native/*)
CONSTRAINTS := constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check
TYPESCRIPT := clients/typescript

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  \033[1m%-8s\033[0m %s\n", $$1, $$2}'

$(STAMPS)/venv:
	@if [ -z "$(PYTHON)" ]; then echo "aimass needs Python 3.11 or newer with its venv module: install it, or say make PYTHON=/path/to/python" >&2; exit 1; fi
	@echo "==> virtual environment in $(VENV) ($$($(PYTHON) --version))"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet 'pip==25.3'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/setup-$(RUNTIME): $(STAMPS)/venv $(CONSTRAINTS) requirements-dev.txt $(PYPROJECTS) $(NATIVE)
	@echo "==> packages (the first time takes minutes: PyTorch is large)"
	@other=$(if $(filter cuda,$(RUNTIME)),onnxruntime,onnxruntime-gpu); \
	  if $(PIP) show --quiet $$other 2>/dev/null; then $(PIP) uninstall --yes $$other; rm -f $(STAMPS)/setup-*; fi
	$(PIP) install -c $(CONSTRAINTS) --build-constraint $(CONSTRAINTS) -r requirements-dev.txt \
	  $(foreach m,$(filter-out services/serving,$(MEMBERS)),-e $(m)) -e 'services/serving[$(RUNTIME)]'
	@# hibari-tts asks for onnxruntime by name: where the other one serves, give its files back their place.
	@if [ $(RUNTIME) = cuda ]; then $(PIP) uninstall --yes onnxruntime; \
	  $(PIP) install -c $(CONSTRAINTS) --no-deps --force-reinstall onnxruntime-gpu; fi
	@touch $@

# The TypeScript client needs node; without it everything else still works.
$(STAMPS)/typescript: $(STAMPS)/venv $(wildcard $(TYPESCRIPT)/package.json $(TYPESCRIPT)/package-lock.json)
	@if [ ! -f $(TYPESCRIPT)/package.json ]; then :; \
	elif ! command -v npm >/dev/null; then echo "==> no npm here: the TypeScript client is not set up"; \
	else echo "==> packages of the TypeScript client"; npm ci --prefix $(TYPESCRIPT) --no-audit --no-fund --ignore-scripts; fi
	@touch $@

.PHONY: setup
setup: $(STAMPS)/setup-$(RUNTIME) $(STAMPS)/typescript ## Create the virtual environment and install everything, pinned

.PHONY: models
models: setup ## Export the default models into $AIMASS_STORE (models/); what is there already is kept
	@for name in $(MODELS); do \
	  if compgen -G "$(AIMASS_STORE)/$$name/*/manifest.json" >/dev/null; then echo "==> $$name is in $(AIMASS_STORE)"; \
	  else echo "==> exporting $$name"; $(BIN)/aimass export $$name --precision fp32 --store "$(AIMASS_STORE)"; fi; \
	done

.PHONY: demo
demo: setup ## Export, serve, chat, speak, embed and show a trace: the whole journey in one command
	@$(BIN)/python demo/demo.py

.PHONY: run
run: models ## Serve every model of the store in the foreground until Ctrl-C
	@exec $(BIN)/aimass up --store "$(AIMASS_STORE)"

.PHONY: check
check: setup ## What must be clean before a commit: format, lint, types, imports, protos, images, repository
	@$(MAKE) -k check-format check-lint check-types check-imports check-protos check-typescript check-images check-repository \
	  && echo "==> all checks passed" || { echo "==> make check failed" >&2; exit 1; }

.PHONY: check-format
check-format:
	@echo "==> format"; $(BIN)/ruff format --check --quiet . || { echo "run '$(BIN)/ruff format .'" >&2; exit 1; }

.PHONY: check-lint
check-lint:
	@echo "==> lint"; $(BIN)/ruff check --quiet .

.PHONY: check-types
check-types:
	@echo "==> types"; $(BIN)/mypy

.PHONY: check-imports
check-imports:
	@echo "==> who imports whom"; $(BIN)/lint-imports --no-logo

.PHONY: check-protos
check-protos:
	@echo "==> protos: lint"; $(BIN)/buf lint protos
	@echo "==> protos: nothing breaks a caller"; .ci/check_breaking.sh $(BIN)
	@echo "==> protos: generated Python is up to date"; .ci/check_generated.sh $(BIN)

.PHONY: check-typescript
check-typescript:
	@if [ -d $(TYPESCRIPT)/node_modules ]; then echo "==> TypeScript client"; npm run --silent --prefix $(TYPESCRIPT) check; \
	else echo "==> TypeScript client: skipped, its packages are not installed (no npm here)"; fi

.PHONY: check-images
check-images:
	@echo "==> image recipes"; $(BIN)/hadolint deploy/*/Dockerfile

.PHONY: check-repository
check-repository:
	@echo "==> pinned versions"; $(BIN)/python .ci/check_constraints.py
	@echo "==> tracked files"; $(BIN)/python .ci/check_tracked_files.py

.PHONY: test
test: setup ## The whole test suite
	$(BIN)/python -m pytest --durations=20 $(PYTEST_ARGS)

.PHONY: bench
bench: setup ## Measure against the peers (BENCH=all or one part) and write docs/benchmarks
	$(BIN)/python -m bench $(BENCH) $(BENCH_ARGS)

.PHONY: protos
protos: setup ## Regenerate all code of the protos; refuses a change that breaks callers
	@.ci/check_breaking.sh $(BIN)
	.ci/generate_python.sh $(BIN) clients/python
	$(BIN)/buf build protos --exclude-source-info -o protos/baseline.txtpb
	@if [ -d $(TYPESCRIPT)/node_modules ]; then npm run --silent --prefix $(TYPESCRIPT) generate; fi

.PHONY: images
images: ## Build the container image of each service (RUNTIME=cpu|cuda); needs a Docker engine
	@docker info >/dev/null 2>&1 || { echo "no Docker engine answers here: start one, then run make images again (make check still lints the recipes)" >&2; exit 1; }
	@for service in generation encoder speech; do \
	  echo "==> aimass-$$service:$(RUNTIME)"; \
	  docker build --build-arg RUNTIME=$(RUNTIME) --file deploy/$$service/Dockerfile --tag aimass-$$service:$(RUNTIME) .; \
	done
