# Everything a CPU machine needs: `make setup`, `make demo`, `make test`, `make lint`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
# CPU build where one is on offer; on a machine with a GPU: make setup TORCH=torch
TORCH ?= torch==2.13.0
EXTRAS := opencv,cpu,openvino,robust,ros,replay,train,test
OUTPUT ?= output/demo
export AMENT_PREFIX_PATH := $(abspath $(VENV))$(if $(AMENT_PREFIX_PATH),:$(AMENT_PREFIX_PATH))

.PHONY: setup demo test lint clean
setup: $(STAMP)

$(STAMP): pyproject.toml setup.py package.xml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[$(EXTRAS)]" "$(TORCH)"
	touch $@

# make demo [BAG=… IMAGE=/topic INFO=/topic DEPTH=/topic]
demo: setup
	$(BIN)/python -m kp_frontend demo --output $(OUTPUT) $(strip \
	  $(if $(BAG),--bag $(BAG)) $(if $(IMAGE),--image $(IMAGE)) $(if $(INFO),--info $(INFO)) $(if $(DEPTH),--depth $(DEPTH)))

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
