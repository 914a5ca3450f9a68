# make demo: profile, plan, execute, compare on this machine.   make test: the test suite.   make help: the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out
# The demo's job: big enough to be worth splitting, small enough for two cores and three minutes.
MODEL := llama-26m
RANKS := 2
BATCH := 4
SEQUENCE := 128
# Tests that judge how long something takes, or look at the machine, run after all others, one at a time.
WORKERS ?= 2
ALONE := $(shell grep -l --include='test_*.py' -r 'mark\.alone' tests)
PYTEST := $(BIN)/python -m pytest -m
# A file's tests stay together, as they share what its fixtures made.
BESIDE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Hundreds of processes start, which would each compile what they import.
unexport PYTHONDONTWRITEBYTECODE

# An environment with PyPI's build of torch for CUDA, several gigabytes: for a machine without a GPU too.
CUDA_VENV ?= .venv-cuda
CUDA_TORCH ?= torch
# An environment with other software, whose checks say what of a plan they accept; Horovod is built in ten minutes.
STACKS_VENV ?= .venv-stacks
HOROVOD ?= yes
PLANS ?= 200
# What a borrowed GPU said.
GPU_OUT ?= $(OUT)/gpu

.PHONY: help install demo examples test test-all test-cuda-build gpu stacks lint matrix bench numbers numbers-tasks accuracy factors docs wheel clean

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch first and pinned: a later, looser requirement must not pull in another build of several gigabytes.
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

install: $(VENV)/installed  ## Set up .venv.

demo: install  ## Profile this machine, plan, execute the best plans and the baseline, compare.
	mkdir -p $(OUT)
	$(BIN)/profile machine --gpus $(RANKS) --model $(MODEL) --sequence-length $(SEQUENCE) --precision fp32 \
		--micro-batches 1,2,4 -o $(OUT)/machine.json
	$(BIN)/plan --model $(MODEL) --gpus $(RANKS) --global-batch $(BATCH) --sequence-length $(SEQUENCE) \
		--codecs auto --machine $(OUT)/machine.json -o $(OUT)/plan.json
	$(BIN)/execute $(OUT)/plan.json --top 5 --with-baseline --steps 6 -o $(OUT)/run.json
	$(BIN)/compare $(OUT)/run.json -o $(OUT)/report.html

examples: install  ## Plan, execute and judge seven tasks on two ranks, from translation to segmentation.
	mkdir -p $(OUT)
	test -s $(OUT)/machine-$(RANKS).json || \
		$(BIN)/profile machine --gpus $(RANKS) --precision fp32 -o $(OUT)/machine-$(RANKS).json
	$(BIN)/python -m executor.examples -o $(OUT)/examples --machine $(OUT)/machine-$(RANKS).json

test: SELECTED := not slow and not gpu
test: install  ## Run the tests, those that allow it on WORKERS=2 processes.
	$(PYTEST) "$(SELECTED) and not alone" $(BESIDE)
	$(PYTEST) "$(SELECTED) and alone" $(ALONE)

test-all: SELECTED := not gpu
test-all: install  ## Run the tests with those marked slow.
	$(PYTEST) "$(SELECTED) and not alone" $(BESIDE)
	$(PYTEST) "$(SELECTED) and alone" $(ALONE)

$(CUDA_VENV)/installed: pyproject.toml constraints.txt
	test -x $(CUDA_VENV)/bin/python || $(PYTHON) -m venv $(CUDA_VENV)
	grep -v '^torch==' constraints.txt > $(CUDA_VENV)/constraints.txt
	$(CUDA_VENV)/bin/pip install --quiet --disable-pip-version-check "$(CUDA_TORCH)"
	$(CUDA_VENV)/bin/pip install --quiet --disable-pip-version-check -c $(CUDA_VENV)/constraints.txt -e ".[dev]"
	touch $@

test-cuda-build: SELECTED := not slow and not gpu
test-cuda-build: $(CUDA_VENV)/installed  ## Run the tests on torch's build for CUDA, with no GPU shown to it.
	$(CUDA_VENV)/bin/python -c "import torch; assert torch.version.cuda, f'torch {torch.__version__} is no build for CUDA'"
	CUDA_VISIBLE_DEVICES= $(CUDA_VENV)/bin/python -m pytest -m "$(SELECTED) and not alone" $(BESIDE) $(TESTS)
	CUDA_VISIBLE_DEVICES= $(CUDA_VENV)/bin/python -m pytest -m "$(SELECTED) and alone" $(or $(TESTS),$(ALONE))

gpu: install  ## Use one GPU for twelve minutes: tests, profile, a model of 1B under many choices. GPU_OUT=DIR.
	$(BIN)/python -m tests.gpu_session $(GPU_OUT)

$(STACKS_VENV)/installed: pyproject.toml constraints.txt tests/stacks/requirements.txt
	test -x $(STACKS_VENV)/bin/python || $(PYTHON) -m venv $(STACKS_VENV)
	$(STACKS_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch "setuptools<81" wheel
	$(STACKS_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	# DeepSpeed's setup asks torch what to build; nothing of it is built here.
	DS_BUILD_OPS=0 $(STACKS_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-build-isolation -r tests/stacks/requirements.txt
	touch $@

$(STACKS_VENV)/horovod: $(STACKS_VENV)/installed tests/stacks/build_horovod.sh
	bash tests/stacks/build_horovod.sh $(STACKS_VENV)/bin/python
	touch $@

stacks: $(STACKS_VENV)/installed $(if $(HOROVOD),$(STACKS_VENV)/horovod)  ## Check plans by other software's own checks, and run its engines. HOROVOD= leaves that out.
	$(STACKS_VENV)/bin/python -m tests.stacks $(PLANS)

lint: install  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

matrix: install  ## Try every model of the matrix in every way, profiled, planned and on two ranks, and write the table (an hour).
	$(BIN)/python -m tests.matrix

bench: install  ## Time the program itself, and hold it against what is recorded.
	$(BIN)/python -m tests.bench

numbers: install  ## Predict and run three dozen plans of all kinds in turns on this machine; errors and ranking.
	mkdir -p $(OUT)
	$(BIN)/python -m tests.numbers $(OUT)

numbers-tasks: install  ## Predict and run 30 models of all kinds, by data parallel and ZeRO 3, on this machine; errors.
	mkdir -p $(OUT)
	$(BIN)/python -m tests.numbers_tasks $(OUT)

accuracy: install  ## Published runs of others, predicted from their configuration: errors by family, in and out of sample.
	$(BIN)/compare profiles/catalog/measured/runs.csv
	$(BIN)/compare profiles/catalog/measured/trainings.csv
	$(BIN)/python -m tests.accuracy

factors: install  ## List what published runs taught: every constant with its prior and what is left of it.
	$(BIN)/python -m planner.published.calibrate --show

docs: install  ## Write the reference of the Python packages, from their docstrings, to out/docs.
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/python -m tests.reference $(OUT)/docs

wheel: install  ## Build what is installed elsewhere, dist/: the same bytes anywhere.
	$(BIN)/python -m hatchling build -d dist

clean:  ## Remove what the demo wrote.
	rm -rf $(OUT)
