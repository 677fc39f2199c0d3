# aimass: `make help` lists every target.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# cpu or cuda: which ONNX Runtime package to install. The two must never be installed together.
RUNTIME ?= cpu
STAMPS := $(VENV)/.stamps
MEMBERS := clients/python services/serving services/decoding services/generation services/encoder exporters
PYPROJECTS := $(MEMBERS:%=%/pyproject.toml)
PROTOS := $(sort $(shell find protos -name '*.proto'))

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(STAMPS)/venv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip==25.3'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/setup-$(RUNTIME): $(STAMPS)/venv constraints.txt requirements-dev.txt $(PYPROJECTS)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -c constraints.txt -r requirements-dev.txt \
	  $(foreach m,$(filter-out services/serving,$(MEMBERS)),-e $(m)) -e 'services/serving[$(RUNTIME)]'
	@touch $@

.PHONY: setup
setup: $(STAMPS)/setup-$(RUNTIME) ## Create the virtual environment and install everything, pinned

PROTOC := $(BIN)/python -m grpc_tools.protoc -I protos \
  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc

.PHONY: protos
protos: setup ## Regenerate the Python code of the protos
	$(PROTOC) --python_out=clients/python --mypy_out=quiet:clients/python $(PROTOS)
	$(PROTOC) --grpc_python_out=clients/python --mypy_grpc_out=quiet:clients/python $(filter %_service.proto,$(PROTOS))
