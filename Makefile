# Everything a CPU machine needs: `make setup`, `make demo`, `make test`, `make lint`.
# On a machine with an NVIDIA GPU: `make gpu-check GPU=1`, which makes an environment of its own with CUDA and TensorRT.
PYTHON ?= python3
VENV := .venv$(if $(GPU),-gpu)
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
# CPU build where one is on offer; on a machine with a GPU: make setup TORCH=torch
TORCH ?= torch==2.13.0
comma := ,
EXTRAS := opencv,$(if $(GPU),gpu$(comma)trt,cpu),openvino,robust,ros,replay,train,test
# `train` brings onnxruntime, which takes the place of onnxruntime-gpu where both are.
WITH_CUDA = $(BIN)/pip uninstall --quiet --yes onnxruntime && \
  $(BIN)/pip install --quiet --no-deps --force-reinstall onnxruntime-gpu
OUTPUT ?= output/demo
export AMENT_PREFIX_PATH := $(abspath $(VENV))$(if $(AMENT_PREFIX_PATH),:$(AMENT_PREFIX_PATH))

.PHONY: setup demo test lint gpu-check clean
setup: $(STAMP)

$(STAMP): pyproject.toml setup.py package.xml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[$(EXTRAS)]" "$(TORCH)"
	$(if $(GPU),$(WITH_CUDA))
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

gpu-check: setup
	$(BIN)/python -m kp_training gpu_check

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
