# Two commands need nothing but Python 3.11 and a C++ compiler: `make demo` and `make test`.
PYTHON ?= python3.11
# Where pip finds the CPU build of PyTorch, for example PyTorch's public CPU index; empty: pip's own configuration.
TORCH_INDEX_URL ?=
SOURCE ?= testsrc://?frames=150&categories=person
PROMPT ?= person
OUT ?= out
MONITOR ?= 127.0.0.1:8080

VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo watch test test-slow check format clean
.DELETE_ON_ERROR:

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0 $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL))
	$(BIN)/pip install --quiet --editable .
	touch $@

# The tests also compile the CUDA source (NVRTC needs no GPU) and convert the network for TensorRT without its builder.
$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[dev,ros2,train,gpu,export,record,fleet]'
	$(BIN)/pip install --quiet --no-deps torch-tensorrt==2.13.0 tensorrt-cu13-bindings==11.0.0.114 tensorrt-lean-cu13-libs==11.0.0.114
	touch $@

demo: $(VENV)/installed
	$(BIN)/python run_pipeline.py run --source '$(SOURCE)' --prompt '$(PROMPT)' --publish tcp://127.0.0.1:5555 \
		--monitor $(MONITOR) --poses $(OUT)/poses.jsonl --video $(OUT)/annotated.mp4

# Runs until Ctrl-C: make watch SOURCE=rtsp://camera.local/stream
watch: SOURCE = testsrc://?frames=1000000&categories=person
watch: $(VENV)/installed
	$(BIN)/python run_pipeline.py run --source '$(SOURCE)' --prompt '$(PROMPT)' --config live --monitor $(MONITOR)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OUT)
