# The README's two commands are `make demo` and `make test`; both set up what they need.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.patchwork-setup
LOCK   := requirements/lock.txt

.PHONY: setup setup-hf setup-vllm demo test parity test-hf test-vllm check format bench clean lock

setup: $(STAMP)

$(STAMP): pyproject.toml $(LOCK) requirements/setup.sh
	PYTHON="$(PYTHON)" sh requirements/setup.sh $(VENV)
	@touch $(STAMP)

demo: setup
	$(BIN)/python -m patchwork_serving.demo

# Side by side where nothing is timed and no cluster is started; the tests of real clusters one after the other.
WITHOUT_GPU := not gpu and not hf and not vllm and not benchmark
SERVERS     := tests/contracts tests/integration tests/acceptance
test: setup
	$(BIN)/python -m pytest -m "$(WITHOUT_GPU)" -n 2 tests/unit tests/conformance
	$(BIN)/python -m pytest -m "$(WITHOUT_GPU) and not alone and not ray" -n 2 --dist loadfile $(SERVERS)
	$(BIN)/python -m pytest -m "$(WITHOUT_GPU) and (alone or ray)" $(SERVERS)

# The examples deployed against plain, 30 questions each (`make test` asks 3).
parity: setup
	PARITY_QUESTIONS=30 $(BIN)/python -m pytest tests/acceptance/test_parity.py -s

# The [hf] extra needs PyTorch (2 GB) and other versions of a few packages: an environment of its own.
setup-hf: .venv-hf/.patchwork-setup

.venv-hf/.patchwork-setup: pyproject.toml $(LOCK) requirements/setup-hf.sh
	PYTHON="$(PYTHON)" sh requirements/setup-hf.sh .venv-hf
	@touch $@

test-hf: setup-hf
	.venv-hf/bin/python -m pytest -m hf

# vLLM on a CPU (no wheel of its own name runs there), so that its component is run before it meets a GPU: 2 GB, some ten minutes.
setup-vllm: .venv-vllm/.patchwork-setup

.venv-vllm/.patchwork-setup: pyproject.toml $(LOCK) requirements/setup-vllm.sh
	PYTHON="$(PYTHON)" sh requirements/setup-vllm.sh .venv-vllm
	@touch $@

test-vllm: setup-vllm
	.venv-vllm/bin/python -m pytest -m vllm

bench: setup
	$(BIN)/python tests/benchmarks/bench_demo_chain.py -o docs/benchmarks/demo_chain.json
	$(BIN)/python tests/benchmarks/bench_retriever.py -o docs/benchmarks/retriever.json

check: setup
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/ruff check --no-cache .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:
	uv pip compile --universal --python-version 3.11 --only-binary :all: --generate-hashes --no-emit-index-url --no-annotate --no-header \
	  --extra dev pyproject.toml -o $(LOCK)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
