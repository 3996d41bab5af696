# The README's two commands are `make demo` and `make test`; both set up what they need.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.patchwork-setup
LOCK   := requirements/lock.txt

.PHONY: setup demo test test-slow check format bench clean lock

setup: $(STAMP)

$(STAMP): pyproject.toml $(LOCK) requirements/setup.sh
	PYTHON="$(PYTHON)" sh requirements/setup.sh $(VENV)
	@touch $(STAMP)

demo: setup
	$(BIN)/python -m patchwork_serving.demo

test: setup
	$(BIN)/python -m pytest -m "not gpu and not hf and not benchmark"

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
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
